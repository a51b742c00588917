"""What a training step costs with each balancing method, beside what it costs with the code of others.

All variants take turns in one process, so that a busy machine slows all of them; a ratio compares two neighbouring
measurements, and medians are over these ratios.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from perception.engine.balance_peers import Step
from perception.engine.balance_variants import (
    PLAIN,
    UpdateCheck,
    Variant,
    WrapperStep,
    choose_variants,
)
from perception.engine.balance_workloads import Workload
from perception.engine.jsonl_log import JsonlLog
from perception.engine.run_folder import describe_environment
from perception.utils import Progress
from perception.utils.seed_statistics import markdown_table

_MIB = 2**20
GRAM_INTERVAL = 100
"""Updates between two watched ones that the amortised cost of watching is given for."""

_AIMS = (
    ("pcgrad", "torchjd-pcgrad", "time", 0.9),
    ("pcgrad", "torchjd-pcgrad", "memory", 1.0),
    ("mgda", "torchjd-mgda", "time", 0.9),
    ("mgda", "torchjd-mgda", "memory", 1.0),
    ("pcgrad-features", PLAIN, "time", 1.15),
    ("amtl", PLAIN, "time", 1.15),
)


def benchmark_balance(
    workload: Workload, *, methods: Iterable[str] | None = None, num_steps: int = 10
) -> dict[str, Any]:
    """Check the variants' updates, then measure their steps in turns.

    A step is forward, backward, the balancing and an AdamW update; loading and preprocessing the batch are not in it.
    One step per variant goes before, of which the peak memory is taken.

    Args:
        workload: model and batch.
        methods: names of `VARIANTS`; None: all. The plain sum is always measured.
        num_steps: rounds; a variant takes one step in each, or one period where its cost repeats.

    Returns:
        JSON-able: `variants`, name → `ms` (median per step), `ratio` to the plain sum of the same round (median, and
        `ratio_quartiles`), `cpu_ratio` by the process's CPU time, `peak_mib` (tensors alive at once beyond those before
        the step), `update_error`; `failed`, name → why; `aims`; `watching`; the workload and the environment.

    A variant that raises, or whose update is not the one it claims to take, is in `failed` and not measured.

    Raises:
        ValueError: an unknown method.
    """
    variants = choose_variants(methods)
    errors, failed = _check(workload, variants)
    optimizer = torch.optim.AdamW(workload.parameters, lr=1e-6, fused=True)
    steps: dict[str, Step] = {}
    peaks = {}
    progress = Progress("Warming up", total=len(variants), unit="variants")
    for variant in variants:
        if variant.name not in failed:
            try:
                step = variant.make(workload, optimizer)
                step()
                peaks[variant.name] = peak_mib(_fresh(variant, workload, optimizer), workload.device)
                steps[variant.name] = step
            except (RuntimeError, NotImplementedError, ValueError) as error:
                failed[variant.name] = _first_line(error)
                optimizer.zero_grad()
        progress.advance()
    progress.close()
    variants = [variant for variant in variants if variant.name in steps]
    times = _measure(workload, variants, steps, num_steps)
    rows = {
        variant.name: {
            "summary": variant.summary,
            "update_error": errors.get(variant.name),
            "peak_mib": round(peaks[variant.name], 4),
            **describe_times(times[variant.name], times[PLAIN]),
        }
        for variant in variants
    }
    return {
        "workload": workload.name,
        "tasks": list(workload.task_names),
        "num_parameters": sum(parameter.numel() for parameter in workload.parameters),
        "device": str(workload.device),
        "num_steps": num_steps,
        "environment": describe_environment(),
        "variants": rows,
        "failed": failed,
        "aims": _aims(rows, times),
        "watching": _watching(rows, steps),
    }


def _fresh(variant: Variant, workload: Workload, optimizer: torch.optim.Optimizer) -> Step:
    """Two steps from the beginning, so that memory which a method keeps between steps is counted."""

    def steps() -> None:
        step = variant.make(workload, optimizer)
        step()
        step()

    return steps


def _check(workload: Workload, variants: Sequence[Variant]) -> tuple[dict[str, float], dict[str, str]]:
    checked = workload if workload.twin is None else workload.twin()
    check = UpdateCheck(checked)
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    progress = Progress("Checking updates", total=len(variants), unit="variants")
    for variant in variants:
        try:
            error = check.error(variant)
        except (RuntimeError, NotImplementedError, ValueError) as problem:
            failed[variant.name] = _first_line(problem)
            for parameter in checked.parameters:
                parameter.grad = None
            error = None
        progress.advance()
        if error is None:
            continue
        errors[variant.name] = error
        if not error <= check.tolerance:
            failed[variant.name] = (
                f"its update differs by {error:.1e} (relative) from {variant.exact} computed on vectors; allowed: "
                f"{check.tolerance:.0e}. Its cost would mean nothing. Is the forward deterministic (no dropout)?"
            )
    progress.close()
    return errors, failed


def _measure(
    workload: Workload, variants: Sequence[Variant], steps: Mapping[str, Step], num_steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Per variant and round: seconds per step, by the clock and of the CPU. Each round begins with another variant."""
    times: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    progress = Progress("Measuring", total=num_steps * len(variants), unit="variants")
    for number in range(num_steps):
        start = number % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            times[variant.name].append(_time(steps[variant.name], variant.period, workload.device))
            progress.advance()
    progress.close()
    return times


def _time(step: Step, count: int, device: torch.device) -> tuple[float, float]:
    _wait(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - start) / count, (time.process_time() - start_cpu) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(function: Callable[[], Any], device: torch.device) -> float:
    """Most MiB of tensors that were alive at once during a call, beyond those before it.

    On a CPU torch's profiler reports every allocation; what libraries allocate by themselves is not in it.

    Example:
        >>> peak_mib(lambda: torch.zeros(2**20), torch.device("cpu"))
        4.0
    """
    if device.type == "cuda":
        _wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints a line at each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted(
        (event["ts"], number, event["args"]["Bytes"])
        for number, event in enumerate(events)
        if event.get("name") == "[memory]"
    )
    alive = peak = 0
    for _, _, size in found:
        alive += size
        peak = max(peak, alive)
    return peak / _MIB


def describe_times(
    own: Sequence[tuple[float, float]], plain: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Medians of (seconds by the clock, of the CPU), and their ratios to another variant's of the same rounds."""
    ratios = [a[0] / b[0] for a, b in zip(own, plain, strict=True)]
    return {
        "ms": round(1e3 * statistics.median(a[0] for a in own), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(value, 4) for value in _quartiles(ratios)],
        "cpu_ms": round(1e3 * statistics.median(a[1] for a in own), 3),
        "cpu_ratio": round(statistics.median(a[1] / b[1] for a, b in zip(own, plain, strict=True)), 4),
    }


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _aims(
    rows: Mapping[str, Mapping[str, Any]], times: Mapping[str, Sequence[tuple[float, float]]]
) -> list[dict[str, Any]]:
    """Each aim that both variants were measured for: ours relative to theirs, by the clock and by CPU time."""
    aims = []
    for name, other, kind, limit in _AIMS:
        if name not in rows or other not in rows:
            continue
        entry: dict[str, Any] = {"variant": name, "relative_to": other, "of": kind, "limit": limit}
        if kind == "memory":
            value = rows[name]["peak_mib"] / rows[other]["peak_mib"]
        else:
            described = describe_times(times[name], times[other])
            value = described["ratio"]
            entry["cpu_value"] = described["cpu_ratio"]
        aims.append({**entry, "value": round(value, 4), "is_met": value <= limit})
    return aims


def _watching(rows: Mapping[str, Mapping[str, Any]], steps: Mapping[str, Step]) -> dict[str, Any]:
    """What watching adds to a step, as a share of it.

    By default: describing the update and writing its line of `log.jsonl`, timed by themselves, since the difference of
    two noisy steps would not show them. With `gram_interval`: the cost of a watched update, spread over the interval.
    """
    watching: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = JsonlLog(folder)
        for name, step in steps.items():
            if isinstance(step, WrapperStep):
                seconds = statistics.median(_watch_once(step, log) for _ in range(50))
                watching[name] = {
                    "ms": round(1e3 * seconds, 4),
                    "share": round(1e3 * seconds / rows[name]["ms"], 6),
                }
        log.close()
    if {"sum", "sum-watched"} <= set(rows):
        extra = rows["sum-watched"]["ratio"] - rows["sum"]["ratio"]
        watching[f"sum, gram_interval={GRAM_INTERVAL}"] = {
            "ms": round(rows[PLAIN]["ms"] * extra / GRAM_INTERVAL, 4),
            "share": round(extra / GRAM_INTERVAL / rows["sum"]["ratio"], 6),
        }
    return watching


def _watch_once(step: WrapperStep, log: JsonlLog) -> float:
    start = time.perf_counter()
    line = {"kind": "train", "step": 0, **step.wrapper.last_step, "balance": step.wrapper.balanced.report()}
    log.write(line)
    return time.perf_counter() - start


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def balance_table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result.

    Args:
        result: of `benchmark_balance`.
    """
    plain = result["variants"][PLAIN]
    rows = [
        [
            name,
            row["summary"],
            f"{row['ms']:.1f}",
            f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f}–{row['ratio_quartiles'][1]:.2f})",
            f"{row['cpu_ratio']:.2f}",
            f"{row['peak_mib']:.0f}",
            f"{row['peak_mib'] / plain['peak_mib']:.2f}",
        ]
        for name, row in result["variants"].items()
    ]
    header = ["variant", "", "ms/step", "× plain (quartiles)", "× plain, CPU time", "peak MiB", "× plain"]
    text = (
        f"{result['workload']}, {len(result['tasks'])} tasks, {result['num_parameters']:,} parameters, "
        f"{result['device']}, {result['environment']['threads']} thread(s), {result['num_steps']} rounds\n\n"
        f"{markdown_table(header, rows)}\n"
    )
    for name, why in result["failed"].items():
        text += f"\nfailed: {name}: {why}\n"
    for aim in result["aims"]:
        cpu = f" ({aim['cpu_value']:.2f} by CPU time)" if "cpu_value" in aim else ""
        text += (
            f"\n{'met' if aim['is_met'] else 'MISSED'}: {aim['variant']} / {aim['relative_to']}, {aim['of']}: "
            f"{aim['value']:.2f}{cpu}, aim at most {aim['limit']}"
        )
    for name, entry in result["watching"].items():
        text += f"\nwatching {name}: {entry['ms']:.3f} ms a step, {100 * entry['share']:.2f} % of it"
    return text + "\n"
