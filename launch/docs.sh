#!/usr/bin/env bash
# Install the docs extra into .venv and build the site into build/site; warnings are errors. Arguments go to Sphinx:
#   bash launch/docs.sh && python -m http.server -d build/site      # or open build/site/index.html
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=docs bash launch/install.sh
exec .venv/bin/python -m sphinx --fail-on-warning --nitpicky --quiet -b html "$@" docs build/site
