"""The digits benchmark's finished runs as numbers over seeds, and as a Markdown table."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from perception.engine.digits_training import LOWER_IS_BETTER, METRICS, TASKS
from perception.evaluation import acc_mtl, delta_m
from perception.utils.seed_statistics import SeedMean, markdown_table, metrics_over_seeds, over_seeds


def describe_runs(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of a method's runs, and each run's numbers.

    Args:
        runs: seed → finished run.
    """
    means = metrics_over_seeds([run["metrics"] for run in runs.values()])
    return {
        "seeds": list(runs),
        "metrics": {name: mean.as_json() for name, mean in means.items()},
        "cpu_seconds": over_seeds(run["cpu_seconds"] for run in runs.values()).as_json(),
        "runs": {str(seed): run["metrics"] for seed, run in runs.items()},
    }


def score_runs(
    runs: Mapping[int, Mapping[str, Any]], singles: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    """As `describe_runs`, and how the runs do against the mean of the single-task runs.

    Args:
        runs: seed → finished run of all tasks.
        singles: task → seed → its single-task run.
    """
    baseline = {
        task: {METRICS[task]: fmean(run["metrics"][METRICS[task]] for run in singles[task].values())}
        for task in TASKS
    }
    drops = [
        delta_m(_by_task(run["metrics"]), baseline, lower_is_better=LOWER_IS_BETTER) for run in runs.values()
    ]
    accuracies = [acc_mtl(_by_task(run["metrics"]), lower_is_better=LOWER_IS_BETTER) for run in runs.values()]
    shares = [run["conflict_share"] for run in runs.values() if run["conflict_share"] is not None]
    return {
        **describe_runs(runs),
        "delta_m_drop": over_seeds(drops).as_json(),
        "delta_m_gain": over_seeds(-drop for drop in drops).as_json(),
        "acc_mtl": over_seeds(accuracies).as_json(),
        "conflict_share": over_seeds(shares).as_json() if shares else None,
    }


def methods_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, best Δm first."""
    columns = list(METRICS.values())
    single = {name: row["metrics"][name] for row in result["single"].values() for name in row["metrics"]}
    rows = [["single-task", *(_text(single[name]) for name in columns), "", "", "", ""]]
    ranked = sorted(result["methods"].items(), key=lambda item: item[1]["delta_m_drop"]["mean"])
    for name, row in ranked:
        cells = [_text(row["metrics"][column]) for column in columns]
        cells += [
            _text(row["delta_m_drop"], 2, 100.0),
            _text(row["acc_mtl"]),
            _text(row["conflict_share"], 3),
        ]
        rows.append([name, *cells, _text(row["cpu_seconds"], 1)])
    header = ["method", *columns, "Δm % (drop)", "Acc_MTL", "conflict share", "CPU s"]
    return markdown_table(header, rows)


def digits_page(result: Mapping[str, Any]) -> str:
    """A result's table under a line that says what it shows."""
    text = (
        f"Overlaid digits, test split; mean ± standard error over {len(result['seeds'])} seeds. Δm as MCLGS prints it:"
        " below 0 is better than the single-task runs; the gain convention is its negative. Its error leaves out that"
        f" of the single-task means. {result['cpu_seconds']:.0f} s CPU in all.\n\n{methods_table(result)}\n"
    )
    for title in ("left_out", "failed"):
        for name, why in result[title].items():
            text += f"\n{title.replace('_', ' ')}: {name}: {why}\n"
    return text


def _text(number: Mapping[str, Any] | None, decimals: int = 4, scale: float = 1.0) -> str:
    if number is None:
        return ""
    return SeedMean(number["mean"], number["standard_error"], number["num_seeds"]).text(decimals, scale)


def _by_task(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {task: {METRICS[task]: metrics[METRICS[task]]} for task in TASKS}
