#!/usr/bin/env bash
# Run the study of server optimizers of docs/results/servers.md. Every method gets four trials on a validation split with seed 0, two
# learning rates of the clients by two of the server on its own scale, then three seeds on all training data.
#   bash benchmarks/fedopt_study.sh CIFAR10_FOLDER [KEYS]
#   METHODS="fedadam fedyogi" bash benchmarks/fedopt_study.sh ...
# CIFAR10_FOLDER has class folders of images: python benchmarks/cifar10_folders.py data data/cifar10
# Resumable: the same command continues. Table: python benchmarks/study_table.py runs/fedopt/* --target 0.45
set -euo pipefail
cifar10=$(realpath "$1")
cd "$(dirname "$0")/.."
shift
declare -A settings=(
  [fedavg]="--server.optimizer sgd --tune server.lr=1.0,1.4"
  [fedavgm]="--server.optimizer fedavgm --tune server.lr=0.3,1.0"
  [fedadagrad]="--server.optimizer fedadagrad --tune server.lr=0.03,0.1"
  [fedadam]="--server.optimizer fedadam --tune server.lr=0.01,0.03"
  [fedyogi]="--server.optimizer fedyogi --tune server.lr=0.01,0.03"
  [scaffold]="--server.optimizer sgd --clients.objective scaffold --tune server.lr=1.0,1.4"
)
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"
for method in ${METHODS:-fedavg fedavgm fedadagrad fedadam fedyogi scaffold}; do
  # shellcheck disable=SC2086 # the settings are several words
  flare-dist sweep --config configs/studies/fedopt.yaml --output_dir "${OUT:-runs/fedopt}/$method" \
    --data.root "$cifar10" --seeds 0,1,2 --tune clients.lr=0.03,0.1 ${settings[$method]} "$@"
done
