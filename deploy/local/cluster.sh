#!/bin/sh
# A Dask cluster of processes on this machine, to which jobs come and go.
#
#   deploy/local/cluster.sh start                     # prints the line to export
#   export DASK_CONFIG="$PWD/dlscale-cluster/tls/dask.yaml"
#   dlscale run SPEC --cluster tls://127.0.0.1:8786
#   deploy/local/cluster.sh stop
#
# WORKERS (1), THREADS of each (all cores divided), MEMORY of each (auto), PORT (8786) and FOLDER (dlscale-cluster: logs, process
# ids, certificates) are taken from the environment: WORKERS=2 THREADS=4 MEMORY=8GB deploy/local/cluster.sh start
#
# Whoever reaches a scheduler or a worker can run code in it, so all of them listen on this machine alone, speak TLS, and take
# nobody without the certificate of the cluster: FOLDER/tls is made at the start, readable for you alone, unless DASK_CONFIG
# names certificates that there are (deploy/tls/certificates.sh). Other machines join with   dask worker tls://HOST:8786
# once HOST=0.0.0.0 is set here and they have the certificates.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
folder=${FOLDER:-dlscale-cluster} workers=${WORKERS:-1} host=${HOST:-127.0.0.1} port=${PORT:-8786}
threads=${THREADS:-$(( ($(nproc) + workers - 1) / workers ))}
address="tls://127.0.0.1:$port"
# Each task computes on one thread: the worker's threads are the parallelism. No web pages: they ask nobody for a certificate.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES='[]' DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'
pages="--no-dashboard --dashboard-address 127.0.0.1:0"

start() {
  mkdir -p "$folder"
  if [ -s "$folder/pids" ]; then echo "cluster.sh: $folder/pids exists; stop that cluster first." >&2; exit 2; fi
  if [ ! -e "${DASK_CONFIG:-}" ]; then
    "$here/../tls/certificates.sh" "$folder/tls" > /dev/null
    DASK_CONFIG=$(cd "$folder/tls" && pwd)/dask.yaml
    export DASK_CONFIG
  fi
  dask scheduler --host "$host" --port "$port" --protocol tls $pages > "$folder/scheduler.log" 2>&1 &
  echo $! > "$folder/pids"
  case $host in 127.* | localhost) listen="--host $host" ;; *) listen="" ;; esac
  dask worker "$address" $listen --nworkers "$workers" --nthreads "$threads" --memory-limit "${MEMORY:-auto}" \
    --local-directory "$folder" $pages > "$folder/workers.log" 2>&1 &
  echo $! >> "$folder/pids"
  python3 -c "
import sys
from distributed import Client
with Client(sys.argv[1], timeout=60) as client:
    client.wait_for_workers(int(sys.argv[2]), timeout=60)
" "$address" "$workers" || { echo "cluster.sh: the workers did not start; see $folder/workers.log" >&2; stop; exit 1; }
  echo "$address with $workers worker(s) of $threads thread(s)"
  echo "export DASK_CONFIG='$DASK_CONFIG'"
}

stop() {
  [ -s "$folder/pids" ] || { echo "cluster.sh: no cluster in $folder" >&2; exit 2; }
  # Workers first: a worker whose scheduler is gone waits for it to come back.
  for pid in $(tac "$folder/pids"); do
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2> /dev/null || true
  done
  rm -f "$folder/pids"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) echo "usage: cluster.sh start | stop" >&2; exit 2 ;;
esac
