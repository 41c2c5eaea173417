#!/usr/bin/env bash
# Train with one rank per GPU (two without GPUs), started by Accelerate's launcher; the engine follows our configuration:
#   bash launch/accelerate.sh --config FILE
#   ACCELERATE_CONFIG=cluster.yaml bash launch/accelerate.sh --config FILE     # as written by `accelerate config`
set -euo pipefail
here="$(dirname "$0")"
PATH="$here/../.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # only silences the launcher: see engine.threads
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || export ACCELERATE_USE_CPU=true
ranks=(--num_processes "${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 2))}" --main_process_port "${MASTER_PORT:-0}")
[ -z "${ACCELERATE_CONFIG:-}" ] || ranks=() # it has them itself
config="${ACCELERATE_CONFIG:-$here/accelerate.yaml}"
exec python "$here/run.py" accelerate launch --config_file "$config" "${ranks[@]}" --module flare_dist train "$@"
