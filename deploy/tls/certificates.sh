#!/bin/sh
# Certificates for a Dask cluster that is reached over a network: without TLS anybody who reaches the scheduler can run code.
#
#   deploy/tls/certificates.sh tls                    # writes tls/ca.pem, tls/dask.pem, tls/dask-key.pem and tls/dask.yaml
#   export DASK_CONFIG=tls/dask.yaml                  # on every machine: scheduler, workers, and where you type dlscale
#   deploy/local/cluster.sh start
#   dlscale run SPEC --cluster tls://127.0.0.1:8786
#
# Whoever holds dask-key.pem belongs to the cluster: keep it readable for you alone. DAYS (365) is their life.
set -eu
folder=${1:?usage: certificates.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
command -v openssl > /dev/null || { echo "certificates.sh: openssl is not installed here" >&2; exit 1; }
umask 077
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "${DAYS:-365}" -subj "/CN=dlscale cluster" \
  -keyout "$folder/ca-key.pem" -out "$folder/ca.pem" 2> /dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=dlscale" \
  -keyout "$folder/dask-key.pem" -out "$folder/dask.csr" 2> /dev/null
openssl x509 -req -in "$folder/dask.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca-key.pem" -CAcreateserial \
  -days "${DAYS:-365}" -out "$folder/dask.pem" 2> /dev/null
rm -f "$folder/dask.csr" "$folder/ca.srl"
{
  cat "$here/../dask.yaml"
  cat << END
    require-encryption: true
    tls:
      ca-file: $folder/ca.pem
      scheduler: {cert: $folder/dask.pem, key: $folder/dask-key.pem}
      worker: {cert: $folder/dask.pem, key: $folder/dask-key.pem}
      client: {cert: $folder/dask.pem, key: $folder/dask-key.pem}
END
} > "$folder/dask.yaml"
echo "DASK_CONFIG=$folder/dask.yaml"
