#!/usr/bin/env bash
# Train with one rank per GPU (two without GPUs), started by DeepSpeed's launcher; the engine follows our configuration:
#   bash launch/deepspeed.sh --config FILE [--engine.name deepspeed]
#   HOSTFILE=hosts bash launch/deepspeed.sh --config FILE     # several nodes: lines like `node-1 slots=8`, by ssh
set -euo pipefail
here="$(dirname "$0")"
PATH="$here/../.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # see engine.threads
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
hosts=(--num_gpus "${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 2))}")
[ -z "${HOSTFILE:-}" ] || hosts=(--hostfile "$HOSTFILE")
exec python "$here/run.py" deepspeed "${hosts[@]}" --master_port "${MASTER_PORT:-29500}" --no_local_rank --module flare_dist train "$@"
