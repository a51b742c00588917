#!/usr/bin/env bash
# Builds the documentation into build/docs, warnings as errors: bash tools/docs.sh [FOLDER]
# Needs the extra: pip install --constraint constraints.txt --editable '.[docs]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-build/docs}"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
"$python" -c 'import furo, griffe, latex2mathml, myst_parser, sphinx' 2>/dev/null || {
    echo "docs: Sphinx and its parts are missing: pip install --constraint constraints.txt --editable '.[docs]'" >&2
    exit 1
}
"$python" -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --conf-dir docs/site . "$out"
echo "docs: $out/index.html"
