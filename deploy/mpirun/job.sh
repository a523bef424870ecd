#!/bin/sh
# A job on the ranks of mpirun (Open MPI or MPICH): every rank computes, none is given away to schedule.
#
#   mpirun -n 4 dlscale run SPEC                      # that is all
#   RANKS=4 deploy/mpirun/job.sh SPEC                 # the same, and starts again when a rank died
#   RANKS=64 HOSTS=hosts.txt deploy/mpirun/job.sh SPEC
#
# hosts.txt has a line "name slots=16" a machine; dlscale and the workspace must be at the same paths on all of them.
# A lost rank ends the whole job, as MPI does; RESTARTS (2) times it is resumed from its last checkpoint, to the same bits.
set -u
ranks=${RANKS:-2} restarts=${RESTARTS:-2}
# Each task computes on one thread: ranks and their threads are the parallelism.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
spec=$1
shift

ranks() { mpirun -n "$ranks" ${HOSTS:+--hostfile "$HOSTS"} ${MPIRUN_OPTIONS:-} dlscale "$@"; }
newest() { dlscale jobs --json "$@" | python3 -c "import json, sys; print(next((job['job'] for job in json.load(sys.stdin)), ''))"; }

before=$(newest)
ranks run "$spec" "$@"
code=$?
while [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "$restarts" -gt 0 ]; do
  job=$(newest)
  # A job that failed for a reason of its own would only fail again; a rank that was killed (137) is none.
  case "$code $(dlscale status "$job" --json | python3 -c "import json, sys; print(json.load(sys.stdin)['state'])")" in
    137* | *lost | *interrupted) ;;
    *) break ;;
  esac
  [ "$job" != "$before" ] || break
  restarts=$((restarts - 1))
  echo "job.sh: resuming $job" >&2
  ranks resume "$job"
  code=$?
done
exit "$code"
