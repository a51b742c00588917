"""A measured step as JSON and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from perception.engine.part_timer import REST
from perception.engine.timed_parts import BACKWARD, BALANCING, OPTIMISER, ORDER, Watch
from perception.utils.seed_statistics import markdown_table

BACKWARD_ROW = "backward"
_LAST = (BACKWARD_ROW, BALANCING, OPTIMISER, REST)


def breakdown(watch: Watch) -> dict[str, Any]:
    """What a watched step consisted of, as means over the steps.

    Args:
        watch: has watched at least one step.

    Returns:
        `ms_per_step` over `num_steps`; `parts`, rows of `part`, `calls` (per step), `ms` and `share` (of the step),
        which add up to the step; `backward`, the backward's time again: `by_part` and `by_task`, rows alike. Both are
        empty without a backward.
    """
    timer = watch.timer
    total = sum(timer.seconds.values())

    def row(part: str, seconds: float, calls: int | None) -> dict[str, Any]:
        return {
            "part": part,
            "calls": None if calls is None else round(calls / timer.num_steps, 3),
            "ms": round(1e3 * seconds / timer.num_steps, 4),
            "share": round(seconds / total, 6),
        }

    backward = {part: value for part, value in timer.seconds.items() if part.startswith(BACKWARD)}
    seconds = {part: value for part, value in timer.seconds.items() if part not in backward}
    calls: dict[str, int] = {part: timer.calls[part] for part in seconds}
    if backward:
        seconds[BACKWARD_ROW] = sum(backward.values())
        calls[BACKWARD_ROW] = sum(watch.backward_calls.values())
    by_part = [
        row(part, backward[f"{BACKWARD}{part}"], None)
        for part in _ordered([part.removeprefix(BACKWARD) for part in backward])
    ]
    by_task = [row(task, value, watch.backward_calls[task]) for task, value in watch.backward_seconds.items()]
    return {
        "ms_per_step": round(1e3 * total / timer.num_steps, 4),
        "num_steps": timer.num_steps,
        "parts": [
            row(part, seconds[part], None if part == REST else calls[part])
            for part in _ordered(list(seconds))
        ],
        "backward": {"by_part": by_part, "by_task": by_task},
    }


def _ordered(parts: Sequence[str]) -> list[str]:
    known = [*ORDER, *(part for part in parts if part not in (*ORDER, *_LAST)), *_LAST]
    return [part for part in known if part in parts]


def step_page(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result of `benchmark_model`."""
    step, environment, memory, data = (result[key] for key in ("breakdown", "environment", "memory", "data"))
    place = environment["devices"][0] if result["device"] != "cpu" else environment["cpu"]
    is_training = result["mode"] == "train"
    lines = [
        f"# {result['config']}, {'training' if is_training else 'prediction'}",
        "",
        f"- **{result['samples_per_second']:.3f} samples/s**: {result['ms_per_step']:.1f} ms per step of batch "
        f"{result['batch_size']} (median {result['ms_per_step_median']:.1f}, CPU time "
        f"{result['cpu_ms_per_step']:.1f}),",
        f"  {result['num_steps']} steps after {result['num_warmup']}",
        *_update(result),
        f"- peak memory {memory['peak_mib']:.0f} MiB, {memory['growth_mib']:.0f} MiB more than before the first step",
        f"  ({memory['of']})",
        f"- {result['num_parameters']:,} parameters, {result['num_trained']:,} trained; {result['precision']}",
        f"- {place}, {environment['threads']} CPU thread(s), torch {environment['packages']['torch']}",
        f"- {data['ms_per_item']:.1f} ms to load an item in one process, so "
        f"{data['ms_per_item'] * result['batch_size']:.1f} ms a batch; {data['num_workers']} loader worker(s)",
        "",
        _parts_table(step),
        "",
        f"Parts were timed in {step['num_steps']} further steps; calls and ms are per step.",
    ]
    if step["backward"]["by_part"]:
        lines += ["", _backward_table("backward of", step["backward"]["by_part"])]
        lines += ["", _backward_table("backward for", step["backward"]["by_task"])]
    lines += ["", "```", result["command"], "```"]
    return "\n".join(lines) + "\n"


def _update(result: Mapping[str, Any]) -> list[str]:
    if result["mode"] != "train":
        return []
    window = result["accumulative_counts"]
    batches = f", {window} batches per update" if window > 1 else ""
    lines = [f"- tasks {', '.join(result['tasks'])}, balanced by {result['balancer']}{batches}"]
    if result["num_skipped"]:
        lines.append(f"- **{result['num_skipped']} step(s) were not finite and skipped their update**")
    return lines


def _parts_table(step: Mapping[str, Any]) -> str:
    rows = [[row["part"], _calls(row), f"{row['ms']:.1f}", _percent(row["share"])] for row in step["parts"]]
    rows.append(["**step**", "", f"{step['ms_per_step']:.1f}", _percent(1.0)])
    return markdown_table(["part", "calls", "ms", "share"], rows)


def _backward_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown_table(
        [title, "calls", "ms", "share of the step"],
        [[row["part"], _calls(row), f"{row['ms']:.1f}", _percent(row["share"])] for row in rows],
    )


def _calls(row: Mapping[str, Any]) -> str:
    return "" if row["calls"] is None else f"{row['calls']:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
