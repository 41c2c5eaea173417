#!/usr/bin/env bash
# Run the study of sparse models of docs/results/flash.md: FLASH and the methods it is compared with, at equal rounds.
# Every method's learning rate comes from the same search on a validation split with seed 0, for each density and
# partition; then three seeds on all training data.
#   bash benchmarks/flash_study.sh MNIST_ROOT CIFAR10_FOLDER [mnist_1|mnist_0.1|cifar10_1 ...] [-- KEYS]
#   JOBS=4 bash benchmarks/flash_study.sh ...    # number of sweeps at a time, 2 by default
#   METHODS="spdst jmwst" bash benchmarks/flash_study.sh ...
#   OUT=runs/flash_long bash benchmarks/flash_study.sh MNIST_ROOT CIFAR10_FOLDER -- --rounds 600    # the full length
# CIFAR10_FOLDER has class folders of images: python benchmarks/cifar10_folders.py data data/cifar10
# Resumable: the same command continues. Progress: tail runs/flash/*.log. Tables: python benchmarks/study_table.py runs/flash/mnist_1_*
set -euo pipefail
mnist=$(realpath "$1") cifar10=$(realpath "$2")
cd "$(dirname "$0")/.."
shift 2
studies=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do studies+=("$1") && shift; done
[ $# -gt 0 ] && shift
[ ${#studies[@]} -gt 0 ] || studies=(mnist_1 mnist_0.1 cifar10_1)
declare -A settings=(
  [dense]="--sparse_training.method dense"
  [pdst]="--sparse_training.method pdst"
  [nst]="--sparse_training.method nst"
  [spdst]="--sparse_training.method spdst"
  [jmwst]="--sparse_training.method jmwst"
  [hetero]="--sparse_training.method jmwst --sparse_training.hetero [[0.3,0.5],[0.3,0.75],[0.4,1]]"
)
declare -A roots=([mnist]=$mnist [cifar10]=$cifar10)
declare -A rates=([mnist_1]=0.5,1.0 [mnist_0.1]=0.1,0.2,0.4 [cifar10_1]=0.1,0.6)
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"
out=${OUT:-runs/flash}
mkdir -p "$out"
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT # running sweeps end with this script
wait_for_one() { wait -n || { echo "a sweep failed; see its log: $out/*.log" >&2 && exit 1; }; }
for study in "${studies[@]}"; do
  data=${study%_*}
  for method in ${METHODS:-dense pdst nst spdst jmwst hetero}; do
    densities=(--grid sparse_training.density=0.05,0.1)
    [ "$method" = dense ] && densities=()
    while [ "$(jobs -pr | wc -l)" -ge "${JOBS:-2}" ]; do wait_for_one; done
    # shellcheck disable=SC2086 # the settings are several words
    flare-dist sweep --config "configs/studies/flash_$data.yaml" --output_dir "$out/${study}_$method" \
      --data.root "${roots[$data]}" --data.alpha "${study#*_}" --seeds 0,1,2 --tune "clients.lr=${rates[$study]}" \
      "${densities[@]}" ${settings[$method]} "$@" > "$out/${study}_$method.log" 2>&1 &
    echo "started: $out/${study}_$method"
  done
done
while [ -n "$(jobs -p)" ]; do wait_for_one; done
