#!/usr/bin/env bash
# Set-up, then lint, types, layers and tests. Arguments go to pytest; --slow runs the slow tests as well.
#   bash tools/test.sh
#   bash tools/test.sh tests/config -k typo
#   bash tools/test.sh --slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env

selection="not slow and not gpu"
arguments=()
for argument in "$@"; do
    if [ "$argument" = "--slow" ]; then
        selection="not gpu"
    else
        arguments+=("$argument")
    fi
done

step() {
    local start=$SECONDS
    echo "== $*"
    "$@" || {
        echo "== FAILED: $*" >&2
        exit 1
    }
    echo "== done in $((SECONDS - start)) s"
}

# The whole suite is shared out, a file's tests to one process, each with one thread; chosen tests run in this one.
processes=()
threads=2
if [ ${#arguments[@]} -eq 0 ]; then
    cores=$(nproc)
    processes=(-n "$((cores < 4 ? cores : 4))" --dist loadfile --durations=30)
    threads=1
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export PATH="$PWD/.venv/bin:$PATH"
step ruff check perception tests tools configs
step mypy
step lint-imports
step python -m pytest -m "$selection" ${processes[@]+"${processes[@]}"} ${arguments[@]+"${arguments[@]}"}
echo "all passed in $SECONDS s"
