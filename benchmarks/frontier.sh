#!/usr/bin/env bash
# Run the frontier study of docs/results/frontier.md: the accuracy of each method at equal rounds and densities. Every method's
# learning rate comes from the same search on a validation split with seed 0; then three seeds train on all data. FLARE's
# tau is tuned as well, between two values; the momentum of DGC and the tau of flare_dgc were fixed after a look at one seed.
#   bash benchmarks/frontier.sh MNIST_ROOT CIFAR10_FOLDER [METHOD...] [-- KEYS]
#   OUT=runs/frontier_long bash benchmarks/frontier.sh MNIST_ROOT CIFAR10_FOLDER -- --rounds 2000    # the full length
# CIFAR10_FOLDER has class folders of images: python benchmarks/cifar10_folders.py data data/cifar10
# Resumable: the same command continues. Tables: python benchmarks/frontier_table.py runs/frontier
set -euo pipefail
mnist=$(realpath "$1") cifar10=$(realpath "$2")
cd "$(dirname "$0")/.."
shift 2
methods=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do methods+=("$1") && shift; done
[ $# -gt 0 ] && shift
[ ${#methods[@]} -gt 0 ] || methods=(dense ec dgc flare flare_dgc ef21)
declare -A settings=(
  [dense]="--compression.sparsifier dense"
  [ec]=""
  [ef21]="--compression.error_feedback ef21"
  [dgc]="--compression.error_feedback dgc --compression.momentum 0.5"
  [flare]="--clients.objective flare --tune clients.flare.tau=0.05,0.2"
  [flare_dgc]="--clients.objective flare --clients.flare.tau 0.05 --compression.error_feedback dgc --compression.momentum 0.5"
)
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"
sweep() { # study, densities, learning rates, method, configuration, keys
  local densities=(--grid "compression.density=$2")
  [ "$4" = dense ] && densities=()
  # shellcheck disable=SC2086 # the settings are several words
  flare-dist sweep --config "configs/studies/$5.yaml" --output_dir "${OUT:-runs/frontier}/$1_$4" --seeds 0,1,2 \
    --tune "clients.lr=$3" "${densities[@]}" ${settings[$4]} "${@:6}"
}
for method in "${methods[@]}"; do
  sweep mnist_iid 1e-2,1e-3,1e-4,1e-5 0.1,0.2,0.4 "$method" frontier_mnist --data.root "$mnist" "$@"
  sweep mnist_dirichlet 1e-2,1e-3,1e-4,1e-5 0.1,0.2,0.4 "$method" frontier_mnist --data.root "$mnist" \
    --data.partition dirichlet --data.alpha 0.3 "$@"
  sweep cifar10_dirichlet 1e-2,1e-4 0.05,0.1,0.2 "$method" frontier_cifar10 --data.root "$cifar10" "$@"
done
