#!/usr/bin/env bash
# Make .venv, install the package into it, and train on scikit-learn's digits: 8 clients on 2 ranks.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || python3 -m venv .venv || { python3 -m pip install -q --user virtualenv && python3 -m virtualenv -q .venv; }
echo "Installing flare_dist and its dependencies into .venv (PyTorch is large: a few minutes the first time) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
export OMP_NUM_THREADS=1 # only silences torchrun: the number of threads comes from the configuration
exec .venv/bin/python launch/run.py torchrun --nproc_per_node 2 -m flare_dist train --config configs/quickstart.yaml "$@"
