#!/usr/bin/env bash
# Run the study of server optimizers behind top-k of docs/results/servers_topk.md: every method at every density, tuned by the same search
# on a validation split with seed 0 (two learning rates of the clients by the server's, on a ladder that grows until the best
# is inside), then three seeds on all training data.
#   bash benchmarks/fedopt_sparse.sh MNIST_ROOT [KEYS]
#   METHODS="fedadam fedadam_0" DENSITIES=0.01 CLIENTS_LR=0.3 bash benchmarks/fedopt_sparse.sh MNIST_ROOT
#   OUT=runs/fedopt_sparse_tau METHODS=fedadam bash benchmarks/fedopt_sparse.sh MNIST_ROOT --server.tau 0.01
#   OUT=runs/fedopt_sparse_long bash benchmarks/fedopt_sparse.sh MNIST_ROOT --rounds 2000              # the full length
# Resumable: the same command continues. Table: python benchmarks/study_table.py runs/fedopt_sparse/*
set -euo pipefail
mnist=$(realpath "$1")
cd "$(dirname "$0")/.."
shift
ladder=(0.0001 0.0003 0.001 0.003 0.01 0.03 0.1 0.3 1 3 10)
declare -A settings=( # the first and last step of the ladder to begin with, and keys
  [fedavg]="7 9 --server.optimizer sgd"
  [fedavgm]="5 7 --server.optimizer fedavgm"
  [fedadam]="3 5 --server.optimizer fedadam"
  [fedadam_0]="3 5 --server.optimizer fedadam --server.betas [0.0,0.99]"
  [fedadam_0_999]="3 5 --server.optimizer fedadam --server.betas [0.0,0.999]"
  [fedyogi]="3 5 --server.optimizer fedyogi"
  [fedyogi_0]="3 5 --server.optimizer fedyogi --server.betas [0.0,0.99]"
  [fedadagrad]="3 5 --server.optimizer fedadagrad"
)
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"

sweep() { # directory, density, seeds, first, last, keys
  flare-dist sweep --config configs/studies/fedopt_sparse.yaml --output_dir "$1" --data.root "$mnist" \
    --compression.density "$2" --seeds "$3" --tune "clients.lr=${CLIENTS_LR:-0.1,0.3}" \
    --tune "server.lr=$(IFS=,; echo "${ladder[*]:$4:$5-$4+1}")" "${@:6}"
}

chosen() { # directory: the learning rate of the server that its search chose
  python -c 'import csv, sys; print([row["server.lr"] for row in csv.DictReader(open(sys.argv[1]))][-1])' "$1/results.csv"
}

for density in ${DENSITIES:-0.01 1 0.1}; do
  for method in ${METHODS:-fedavg fedavgm fedadam fedadam_0 fedyogi fedyogi_0 fedadagrad fedadam_0_999}; do
    read -r first last keys <<< "${settings[$method]}"
    directory=${OUT:-runs/fedopt_sparse}/${method}_$density
    while true; do
      # shellcheck disable=SC2086 # the keys are several words
      sweep "$directory" "$density" 0 "$first" "$last" $keys "$@"
      best=$(chosen "$directory")
      if [ "$best" = "${ladder[$first]}" ] && [ "$first" -gt 0 ]; then
        first=$((first - 1))
      elif [ "$best" = "${ladder[$last]}" ] && [ "$last" -lt $((${#ladder[@]} - 1)) ]; then
        last=$((last + 1))
      else
        break
      fi
    done
    # shellcheck disable=SC2086
    sweep "$directory" "$density" 0,1,2 "$first" "$last" $keys "$@"
  done
done
