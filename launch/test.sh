#!/usr/bin/env bash
# Install the test extra into .venv and run lint, types and every test; arguments go to pytest.
# Tests of other extras are skipped, and a line at the end says so; EXTRAS=all,test runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh
unset PYTHONDONTWRITEBYTECODE  # or each of a hundred interpreters compiles what uv has installed without bytecode
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy &  # while tests wait for other processes
types=$!
status=0
.venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait "$types" || exit 1
exit "$status"
