#!/usr/bin/env bash
# Train on several ranks of one machine: bash tools/dist_train.sh CONFIG RANKS [arguments of perception train].
#   bash tools/dist_train.sh bevformer_tiny 8
#   bash tools/dist_train.sh bevformer_nano 2 --dry-run      (CPU: gloo)
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT say where this one stands.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
config=$1
ranks=$2
shift 2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python"
[ -x "$python" ] || python=python
rendezvous=(--standalone)
if [ "${NNODES:-1}" -gt 1 ]; then
    rendezvous=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${PORT:-29500}")
fi
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$ranks" \
    -m perception.cli.main train "$config" "$@"
