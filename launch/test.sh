#!/usr/bin/env bash
# Install the test extra into .venv and run lint, types and every test; arguments go to pytest.
# Tests of other extras are skipped, and a line at the end says so; EXTRAS=all,test runs them.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || python3 -m venv .venv || { python3 -m pip install -q --user virtualenv && python3 -m virtualenv -q .venv; }
# Without bytecode: to compile what most tests never import takes a minute of a processor.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[${EXTRAS:-test}]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"
