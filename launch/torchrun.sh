#!/usr/bin/env bash
# Train with one rank per GPU (per core without GPUs), on this node or, started on each of them, on several:
#   bash launch/torchrun.sh --config FILE
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node bash launch/torchrun.sh --config FILE
set -euo pipefail
here="$(dirname "$0")"
PATH="$here/../.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # only silences torchrun: see engine.threads
nodes=(--standalone)
if [ "${NNODES:-1}" != 1 ]; then
  nodes=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?set it to the number of this node, 0 to NNODES - 1}"
    --master_addr "${MASTER_ADDR:?set it to the name of the first node}" --master_port "${MASTER_PORT:-29500}")
fi
exec python "$here/run.py" torchrun "${nodes[@]}" --nproc_per_node "${NPROC_PER_NODE:-auto}" -m flare_dist train "$@"
