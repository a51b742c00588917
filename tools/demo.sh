#!/usr/bin/env bash
# From a fresh clone to a trained, scored and drawn model: bash tools/demo.sh
# What is done already is skipped; an interrupted training continues. Variables: SCENES, SEED, CONFIG, RUN, DATA.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

CONFIG="${CONFIG:-bevformer_nano}"
SCENES="${SCENES:-10}"
SEED="${SEED:-0}"
DATA="${DATA:-data/nuscenes-synthetic}"
RUN="${RUN:-work_dirs/demo}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$RUN/.demo"
current="setup"
trap 'code=$?; [ $code -eq 0 ] || echo "demo: step \"$current\" failed with exit code $code; what was done before is kept. Mend it and run bash tools/demo.sh again." >&2' EXIT

# step NAME KEY COMMAND...: run the command, or skip it where it was done with the same key.
step() {
    local name=$1 key=$2 start
    shift 2
    current=$name
    if [ "$(cat "$RUN/.demo/$name.done" 2>/dev/null)" = "$key" ]; then
        echo "demo: $name: done before, skipped"
        return
    fi
    echo "demo: $name: $*"
    start=$(date +%s.%N)
    "$@"
    echo "$start $(date +%s.%N)" | awk '{printf "%.1f\n", $2 - $1}' >"$RUN/.demo/$name.seconds"
    echo "$key" >"$RUN/.demo/$name.done"
    echo "demo: $name: $(cat "$RUN/.demo/$name.seconds") s"
}

start=$SECONDS
setup_env
[ -f "$RUN/.demo/setup.seconds" ] || echo $((SECONDS - start)) >"$RUN/.demo/setup.seconds"
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"

options=(--data-root "$DATA")

world="scenes=$SCENES seed=$SEED data=$DATA"
# A world or an index that has been removed since is made again.
[ -d "$DATA/v1.0-mini" ] || rm -f "$RUN/.demo/"{synthesize,prepare}.done
[ -f "$DATA/perception_index/v1.0-mini_mini_val.json" ] || rm -f "$RUN/.demo/prepare.done"
step synthesize "$world" perception data synthesize --out "$DATA" --scenes "$SCENES" --seed "$SEED"
step prepare "$world" perception data prepare "$DATA"

current="config"
recipe="$world $(perception config show "$CONFIG" "${options[@]}" | sha256sum | cut -d' ' -f1)"
if [ -f "$RUN/.demo/recipe" ] && [ "$(cat "$RUN/.demo/recipe")" != "$recipe" ]; then
    old="$RUN-$(date +%Y%m%d-%H%M%S)"
    echo "demo: the recipe has changed since the last run; that run is now $old"
    mv "$RUN" "$old"
    mkdir -p "$RUN/.demo"
    cp "$old/.demo/"{setup,synthesize,prepare}.seconds "$old/.demo/"{synthesize,prepare}.done "$RUN/.demo/"
fi
echo "$recipe" >"$RUN/.demo/recipe"

# --resume starts from the beginning where there is no checkpoint yet. Evaluation is a step of its own below.
step train "$recipe" perception train "$CONFIG" --work-dir "$RUN" --resume "${options[@]}" \
    --set train_cfg.val_interval=0
step evaluate "$recipe" perception test "$RUN"
step untrained "$recipe" perception test "$CONFIG" --untrained --work-dir "$RUN" "${options[@]}"
step constant "$recipe" perception test "$CONFIG" --baseline constant --work-dir "$RUN" "${options[@]}"
step visualize "$recipe" perception visualize "$RUN" --num 6

current="report"
seconds=()
for name in setup synthesize prepare train evaluate visualize; do
    seconds+=("$name=$(cat "$RUN/.demo/$name.seconds")")
done
perception report "$RUN" --draw 1 --seconds "${seconds[@]}" >"$RUN/.demo/report.path"

current="summary"
cat "$RUN/summary.json"
echo
echo "demo: done in $SECONDS s"
echo "  scores    $RUN/summary.json, $RUN/metrics.json"
echo "  pictures  $RUN/pictures/"
echo "  report    $(tail -1 "$RUN/.demo/report.path")"
echo "  log       $RUN/log.jsonl, tensorboard --logdir $RUN"
