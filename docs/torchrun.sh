#!/usr/bin/env bash
# One run on several machines with torchrun: start it on each of them.
#   NODES=2 NODE=0 HEAD=first-machine:29500 docs/torchrun.sh pipeline=multistage task=mnli trainer=gpu
# run.dir must be a folder that all machines share. NODE counts the machines from 0; HEAD is machine 0.
set -euo pipefail
: "${NODES:?}" "${NODE:?}" "${HEAD:?}"
DEVICES=${DEVICES:-8}

exec .venv/bin/torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$DEVICES" \
  --rdzv-backend c10d --rdzv-id bitkd --rdzv-endpoint "$HEAD" \
  -m bitkd run trainer.num_nodes="$NODES" trainer.devices="$DEVICES" "$@"
