#!/usr/bin/env bash
# Compare ways of exchanging gradients for docs/results/exchanges.md: the same model, data, batches and learning rate for all, on an
# unlimited loopback; three seeds of those that a claim is made about; and, half as long, a loopback of 100 Mbit, which
# needs root (see link.sh). The learning rate is the best of full precision on a validation split.
#   bash benchmarks/compare_study.sh CIFAR10_FOLDER [KEYS]
# CIFAR10_FOLDER has class folders of images: python benchmarks/cifar10_folders.py data data/cifar10
# Resumable: the same command continues.
set -euo pipefail
cifar10=$(realpath "$1")
cd "$(dirname "$0")/.."
shift
out=${OUT:-runs/compare}
techniques=full_precision,fp16,powersgd,topk,topk_dgc,topk_fp16,topk_int8,topk_2bit,bf16_training_topk_int8
claimed=full_precision,topk,topk_int8,bf16_training_topk_int8
compare() {
  flare-dist compare --config configs/compare/cnn.yaml --data.root "$cifar10" --target 0.3 "$@"
}
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"
compare --output_dir "$out/rate" --techniques full_precision --tune clients.lr=0.01,0.03,0.1 "$@"
best="import csv, sys; print(next(r['clients.lr'] for r in csv.DictReader(open(sys.argv[1])) if r['purpose'] == 'result'))"
rate=$(python -c "$best" "$out/rate/results.csv")
set -- --clients.lr "$rate" "$@"
compare --output_dir "$out/unshaped" --techniques $techniques --link 100Mbps/shared "$@"
export -f compare
export cifar10 out techniques
compare --output_dir "$out/seeds" --techniques $claimed --seeds 0,1,2 "$@"
bash benchmarks/link.sh 100mbit bash -c 'compare --output_dir "$out/100mbit" --techniques $techniques "$@"' _ --rounds 2 "$@"
