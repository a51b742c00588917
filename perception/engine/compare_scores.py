"""What finished runs scored: one row per balancer, and the Markdown page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from perception.config.types import type_name
from perception.engine.jsonl_log import read_log
from perception.engine.run_folder import LOG_FILE, SUMMARY_FILE
from perception.evaluation import LOWER_IS_BETTER, acc_mtl, delta_m
from perception.utils import read_json
from perception.utils.seed_statistics import SeedMean, markdown_table, metrics_over_seeds, over_seeds

COLUMNS = ("NDS", "mAP", "AP", "AP50", "mIoU", "mAcc", "mAVE", "mATE", "mASE", "mAOE", "mAAE")
DEFAULT_SCORES: dict[str, tuple[str, ...]] = {"det": ("NDS",), "seg": ("mIoU",)}
"""Task → metrics in Δm and Acc_MTL: those of wPCGrad's Table 1. (NDS holds mAP and the errors already.)"""
IMAGE_SCORES: dict[str, tuple[str, ...]] = {"det": ("AP",), "seg": ("mIoU",)}
"""The same for boxes and segmentation in images: those of MCLGS's Table 4."""


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """A finished run.

    Attributes:
        metrics: numbers of the last evaluation, those of single classes left out.
        steps: training steps.
        seconds: of training.
        conflict_share: mean share of task pairs with a negative cosine; None if the log has no cosines.
        group_conflict_share: connection strength's, over the channel groups of its second phase; None without one.
        cosines: "task/task" → mean cosine.
    """

    metrics: dict[str, float]
    steps: int
    seconds: float | None
    conflict_share: float | None
    group_conflict_share: float | None
    cosines: dict[str, float]


def read_run(folder: str | Path, *, num_steps: int | None = None) -> RunScores | None:
    """Read a run folder; None if the run is not finished.

    The evaluation is taken from the run's own log: `metrics.json` may be of something else by now.

    Args:
        folder: the run folder.
        num_steps: of the whole run; None takes the last evaluation, whichever it was.
    """
    folder = Path(folder)
    if not (folder / LOG_FILE).is_file() or not (folder / SUMMARY_FILE).is_file():
        return None
    lines = read_log(folder / LOG_FILE)
    evaluations = [line for line in lines if line["kind"] == "val" and num_steps in (None, line["step"])]
    summary = read_json(folder / SUMMARY_FILE)
    if not evaluations or num_steps not in (None, summary.get("steps")):
        return None
    last = evaluations[-1]
    reports = [line.get("balance") or {} for line in lines if line["kind"] == "train"]
    pairs = dict.fromkeys(pair for report in reports for pair in report.get("cosines", ()))
    return RunScores(
        metrics={
            name: float(value)
            for name, value in last["metrics"].items()
            if isinstance(value, int | float) and not isinstance(value, bool) and "/" not in name
        },
        steps=int(last["step"]),
        seconds=(summary.get("seconds") or {}).get("train"),
        conflict_share=_mean_of("conflict_share", reports),
        group_conflict_share=_mean_of("group_conflict_share", reports),
        cosines={
            pair: fmean(report["cosines"][pair] for report in reports if pair in report.get("cosines", ()))
            for pair in pairs
        },
    )


def default_scores(cfg: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Task → metrics, by the metrics that a config evaluates.

    Example:
        >>> default_scores({"val_evaluator": [{"type": "BoxAPMetric"}, {"type": "SemSegMetric"}]})
        {'det': ('AP',), 'seg': ('mIoU',)}
    """
    evaluator = cfg.get("val_evaluator") or []
    found = [
        type_name(metric["type"]) for metric in ([evaluator] if isinstance(evaluator, dict) else evaluator)
    ]
    is_image = any(name.rpartition(".")[2] in ("BoxAPMetric", "SemSegMetric") for name in found)
    return IMAGE_SCORES if is_image else DEFAULT_SCORES


def _mean_of(key: str, reports: Sequence[Mapping[str, Any]]) -> float | None:
    values = [report[key] for report in reports if report.get(key) is not None]
    return fmean(values) if values else None


def mean_metrics(runs: Mapping[Any, RunScores]) -> dict[str, float]:
    """Mean over runs of each metric that all of them have."""
    return {
        name: mean.mean for name, mean in metrics_over_seeds([run.metrics for run in runs.values()]).items()
    }


def describe_group(runs: Mapping[Any, RunScores]) -> dict[str, Any]:
    """Means and errors over the finished seeds of one balancer, and each seed's numbers; JSON-able."""
    means = metrics_over_seeds([run.metrics for run in runs.values()])
    return {
        "metrics": {name: mean.as_json() for name, mean in means.items()},
        "seconds": _optional([run.seconds for run in runs.values()]),
        "conflict_share": _optional([run.conflict_share for run in runs.values()]),
        "group_conflict_share": _optional([run.group_conflict_share for run in runs.values()]),
        "runs": {
            str(seed): {
                "metrics": run.metrics,
                "steps": run.steps,
                "seconds": run.seconds,
                "conflict_share": run.conflict_share,
                "group_conflict_share": run.group_conflict_share,
                "cosines": run.cosines,
            }
            for seed, run in runs.items()
        },
    }


def score_group(
    runs: Mapping[Any, RunScores],
    singles: Mapping[str, Mapping[Any, RunScores]],
    scores: Mapping[str, Sequence[str]],
    notes: list[str],
) -> dict[str, Any]:
    """Δm in both conventions against the single-task means, and Acc_MTL; None where they have no value.

    Args:
        runs: seed → finished run of one balancer, at least one.
        singles: task → seed → finished single-task run.
        scores: task → metrics that count.
        notes: gets the reason where a score has no value.
    """
    complete = {
        task: names
        for task, names in scores.items()
        if all(name in run.metrics for run in runs.values() for name in names)
    }
    _note_missing(scores, complete, "the compared runs", notes)
    baseline = {}
    for task, names in complete.items():
        found = list(singles.get(task, {}).values())
        if found and all(name in run.metrics for run in found for name in names):
            baseline[task] = {name: fmean(run.metrics[name] for run in found) for name in names}
        elif found:
            _note_missing({task: names}, {}, f"the single-task runs of {task}", notes)
    drops, accuracies = [], []
    try:
        if baseline:
            drops = [
                delta_m(
                    _pick(run, {task: complete[task] for task in baseline}), baseline,
                    lower_is_better=_lower(baseline), convention="drop",
                )
                for run in runs.values()
            ]  # fmt: skip
        if complete:
            accuracies = [
                acc_mtl(_pick(run, complete), lower_is_better=_lower(complete)) for run in runs.values()
            ]
    except ValueError as error:
        _add_once(notes, str(error))
    return {
        "delta_m_drop": _optional(drops),
        "delta_m_gain": _optional([-drop for drop in drops]),
        "acc_mtl": _optional(accuracies),
    }


def comparison_page(result: Mapping[str, Any]) -> str:
    """The Markdown page of what `compare.json` holds."""
    groups = {**{f"single {task}": row for task, row in result["single"].items()}, **result["balancers"]}
    known = {name for row in groups.values() for name in row["metrics"]}
    columns = [name for name in COLUMNS if name in known] or sorted(known)
    reference = groups.get(result.get("reference") or "", {"metrics": {}})["metrics"]
    sizes = relative_sizes(result)
    has_groups = any(row["group_conflict_share"] is not None for row in groups.values())
    rows = []
    for label, row in groups.items():
        cells = [
            _text(row["metrics"].get(name)) + _percent(row["metrics"].get(name), reference.get(name))
            for name in columns
        ]
        cells += [_text(row.get("delta_m_drop"), 2, 100.0), _text(row.get("delta_m_gain"), 2, 100.0)]
        cells += [_text(row.get("acc_mtl")), _text(row["conflict_share"], 3)]
        cells += [_text(row["group_conflict_share"], 3)] if has_groups else []
        cells += [_text(row["seconds"], 0)]
        size = [f"{sizes[label]:.2f}"] if label in sizes else [""]
        rows.append([label, *(size if sizes else []), *cells, f"{len(row['runs'])}"])
    header = [
        "balancer",
        *(["#P"] if sizes else []),
        *columns,
        "Δm % (drop)",
        "Δm % (gain)",
        "Acc_MTL",
        "conflict share",
        *(["of channel groups"] if has_groups else []),
        "train s",
        "seeds",
    ]
    counted = "; ".join(f"{task}: {', '.join(names)}" for task, names in result["scores"].items())
    lines = [
        f"# Comparison: {result['config']}",
        "",
        f"Command: `{result['command']}`.",
        "",
        f"Mean ± standard error over the finished seeds. Δm and Acc_MTL over {counted}; "
        "drop: positive is worse than the single-task runs (MCLGS), gain: positive is better (AMTL's Δ_MTL). "
        "The error of Δm leaves out that of the single-task means."
        + (" #P: parameters, the mean single-task model is 1." if sizes else "")
        + (f" Percentages are against {result['reference']}." if reference else ""),
        "",
        markdown_table(header, rows),
    ]
    for title, items in (("Failed", result["failed"]), ("Not finished", result["unfinished"])):
        lines += ["", f"{title}:", *(f"- {item}" for item in items)] if items else []
    lines += ["", "Notes:", *(f"- {note}" for note in result["notes"])] if result["notes"] else []
    return "\n".join(lines) + "\n"


def relative_sizes(result: Mapping[str, Any]) -> dict[str, float]:
    """Row's label → its number of parameters over the mean of the single-task models'; empty where one is unknown."""
    counts = result.get("parameters") or {}
    singles = [count for label, count in counts.items() if label.startswith("single ")]
    if len(singles) < len(result["single"]) or not singles:
        return {}
    return {label: count / fmean(singles) for label, count in counts.items()}


def _pick(run: RunScores, scores: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    return {task: {name: run.metrics[name] for name in names} for task, names in scores.items()}


def _lower(scores: Mapping[str, Any]) -> list[str]:
    return [name for name in LOWER_IS_BETTER if any(name in names for names in scores.values())]


def _note_missing(
    wanted: Mapping[str, Sequence[str]], found: Mapping[str, Any], where: str, notes: list[str]
) -> None:
    for task, names in wanted.items():
        if task not in found:
            _add_once(notes, f"{where} have no {' or '.join(names)}, so {task} does not count; see --scores")


def _add_once(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _optional(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return over_seeds(known).as_json() if known else None


def _percent(number: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> str:
    if number is None or reference is None or number is reference or not reference["mean"]:
        return ""
    return f" ({number['mean'] / reference['mean'] - 1:+.1%})"


def _text(number: Mapping[str, Any] | None, decimals: int = 4, scale: float = 1.0) -> str:
    if number is None:
        return ""
    return SeedMean(number["mean"], number["standard_error"], number["num_seeds"]).text(decimals, scale)
