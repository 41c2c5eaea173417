#!/usr/bin/env bash
# Train with one rank per GPU (two without GPUs), started by DeepSpeed's launcher:
#   bash launch/deepspeed.sh --config FILE
#   HOSTFILE=hosts bash launch/deepspeed.sh --config FILE     # on several nodes: lines like `node-1 slots=8`, by ssh
# The engine follows our configuration: --engine.name deepspeed takes deepspeed_config.json as well.
set -euo pipefail
PATH="$(dirname "$0")/../.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # see engine.threads
where=()
if [ -n "${HOSTFILE:-}" ]; then
  where=(--hostfile "$HOSTFILE")
else
  gpus=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
  [ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
  where=(--num_gpus "${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 2))}")
fi
exec deepspeed "${where[@]}" --master_port "${MASTER_PORT:-29500}" --no_local_rank --module flare_dist train "$@"
