#!/usr/bin/env bash
# Install this checkout into .venv, to be edited in place, with the extras named in EXTRAS (test, unless it is set).
# uv takes a quarter of pip's time; if it is not to be had, or fails, pip installs.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || python3 -m venv .venv || { python3 -m pip install -q --user virtualenv && python3 -m virtualenv -q .venv; }
pip=(.venv/bin/python -m pip --disable-pip-version-check)
package=".[${EXTRAS:-test}]"

# uv does not read pip's settings, and by itself takes a package from the first index that has it.
options=(--quiet --index-strategy unsafe-best-match)
settings=$("${pip[@]}" config list)
for name in index-url extra-index-url find-links constraint; do
  values=$(sed -n "s/^.*\.$name='\(.*\)'$/\1/p" <<< "$settings" | head -n 1)  # the environment's comes before a file's
  for value in ${values//\\n/ }; do options+=("--$name" "$value"); done
done

{ "${pip[@]}" install --quiet uv && .venv/bin/python -m uv pip install "${options[@]}" --editable "$package"; } \
  || "${pip[@]}" install --quiet --no-compile --editable "$package"  # to compile what most tests never import takes a minute
