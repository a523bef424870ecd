#!/bin/sh
# A Dask cluster of processes on this machine, to which jobs come and go.
#
#   deploy/local/cluster.sh start
#   dlscale run SPEC --cluster tcp://127.0.0.1:8786
#   deploy/local/cluster.sh stop
#
# WORKERS (1), THREADS of each (all cores divided), MEMORY of each (auto), PORT (8786) and FOLDER (dlscale-cluster: logs and
# process ids) are taken from the environment: WORKERS=2 THREADS=4 MEMORY=8GB deploy/local/cluster.sh start
#
# Other machines join with   dask worker tcp://HOST:8786   once HOST=0.0.0.0 is set here; then use TLS (deploy/tls).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${FOLDER:-dlscale-cluster} workers=${WORKERS:-1} host=${HOST:-127.0.0.1} port=${PORT:-8786}
threads=${THREADS:-$(( ($(nproc) + workers - 1) / workers ))}
protocol=${PROTOCOL:-tcp}
# Each task computes on one thread: the worker's threads are the parallelism.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 DASK_CONFIG="${DASK_CONFIG:-$here/../dask.yaml}"

start() {
  mkdir -p "$folder"
  if [ -s "$folder/pids" ]; then echo "cluster.sh: $folder/pids exists; stop that cluster first." >&2; exit 2; fi
  dask scheduler --host "$host" --port "$port" --protocol "$protocol" --no-dashboard > "$folder/scheduler.log" 2>&1 &
  echo $! > "$folder/pids"
  dask worker "$protocol://127.0.0.1:$port" --nworkers "$workers" --nthreads "$threads" --memory-limit "${MEMORY:-auto}" \
    --local-directory "$folder" --no-dashboard > "$folder/workers.log" 2>&1 &
  echo $! >> "$folder/pids"
  python3 -c "
import sys
from distributed import Client
with Client(sys.argv[1], timeout=60) as client:
    client.wait_for_workers(int(sys.argv[2]), timeout=60)
" "$protocol://127.0.0.1:$port" "$workers" || { echo "cluster.sh: the workers did not start; see $folder/workers.log" >&2; stop; exit 1; }
  echo "$protocol://127.0.0.1:$port with $workers worker(s) of $threads thread(s)"
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
