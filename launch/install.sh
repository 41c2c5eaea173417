#!/usr/bin/env bash
# Install this checkout into .venv, to be edited in place, with the extras in EXTRAS (test, unless it is set), by uv, which
# takes a quarter of pip's time and is told pip's settings; by pip, without bytecode, if uv fails. Arguments go to either.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || python3 -m venv .venv || { python3 -m pip install -q --user virtualenv && python3 -m virtualenv -q .venv; }
pip=(.venv/bin/python -m pip --disable-pip-version-check)
set -- --quiet --editable ".[${EXTRAS:-test}]" "$@"
settings=$("${pip[@]}" config list)  # the environment's before those of files
options=(--index-strategy unsafe-best-match)  # of all indexes the newest, as pip does
for name in index-url extra-index-url find-links constraint; do
  values=$(sed -n "/\.$name='/ {s/^[^']*'\(.*\)'$/\1/p; q}" <<< "$settings")
  for value in ${values//\\n/ }; do options+=("--$name" "$value"); done
done
{ "${pip[@]}" install --quiet uv && .venv/bin/python -m uv pip install "${options[@]}" "$@"; } || "${pip[@]}" install --no-compile "$@"
