#!/usr/bin/env bash
# Starts N processes on this machine that train a run or a sweep together: to try it, or with one GPU for each.
#   bash scripts/launch_local.sh 2 train --env CartPole-v1 --num-envs 256 --num-shards 4 --out runs/two
set -euo pipefail
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo "usage: bash scripts/launch_local.sh N train|resume|sweep ..., with N processes" >&2
  exit 2
fi
number=$1
shift
# Any free port of this machine: the first process listens there, the others come to it.
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
command=${PUREJAXPPO:-purejaxppo} # the environment's, once it is activated
pids=()
for ((i = 0; i < number; i++)); do
  # One GPU for each process, if there are any; take this line out to give each all of them.
  export CUDA_VISIBLE_DEVICES=$i
  # One CPU device for each process, where the run is on CPUs.
  export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-1}
  $command "$@" --coordinator "localhost:$port" --num-processes "$number" --process-id "$i" &
  pids+=($!)
done
# A signal to this script goes to all; they stop at the same update, and the state is saved.
signalled=
trap 'signalled=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
code=0
for pid in "${pids[@]}"; do
  signalled=
  own=0
  wait "$pid" || own=$?
  if [ -n "$signalled" ]; then # which ends `wait`, and not the process
    own=0
    wait "$pid" || own=$?
  fi
  # The first process says how the run ended; another's code counts if that is 0.
  [ "$code" != 0 ] || code=$own
done
exit "$code"
