"""What the report's page gets from above it: Δm and Acc_MTL of its methods, and pictures of the samples it shows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from perception.config import ConfigError
from perception.engine.compare_scores import DEFAULT_SCORES, IMAGE_SCORES, RunScores, score_group
from perception.engine.pictures import draw_predictions
from perception.visualization import RunGroup, choose_samples
from perception.visualization.run_groups import numbers_of


def score_groups(
    groups: Sequence[RunGroup], notes: list[str], *, scores: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, Any]]:
    """Δm against the single-task runs among the groups, where there are some, and Acc_MTL of each method.

    Args:
        groups: methods and single-task baselines that were scored on the same data.
        notes: gets the reason where a score has no value.
        scores: task → metrics that count; by default NDS and mIoU, of images AP and mIoU.

    Returns:
        Label → `delta_m_drop`, `delta_m_gain`, `acc_mtl`, as `perception.engine.compare_scores.score_group` has it.
    """
    singles = {group.task: _runs(group) for group in groups if group.task is not None}
    found = {}
    for group in groups:
        runs = _runs(group)
        names = {name for run in runs.values() for name in run.metrics}
        counted = scores or (IMAGE_SCORES if "AP" in names and "NDS" not in names else DEFAULT_SCORES)
        if group.task is None and all(name in names for wanted in counted.values() for name in wanted):
            found[group.label] = score_group(runs, singles, counted, notes)
    return found


def draw_samples(
    groups: Sequence[RunGroup],
    reference: RunGroup,
    load: Callable[[Path], Config],
    *,
    num: int,
) -> list[Path]:
    """Predict and draw the samples that the report shows, into `pictures/ranked` of each run that it shows them of.

    Args:
        groups: the report's methods.
        reference: the one that differences are from.
        load: run folder → its config.
        num: samples of each kind.

    Returns:
        The files written.

    Raises:
        ConfigError: no run has scores of single samples.
        CheckpointError: a run has no valid checkpoint.
    """
    choice = choose_samples(groups, reference, num=num)
    if choice is None:
        raise ConfigError(
            "--draw: no run holds metrics_per_sample.json, which names the best and the worst samples. Run "
            "`perception test RUN` on the runs first"
        )
    written = []
    for _, run in choice.runs:
        folder = run.summary.folder
        out = folder / "pictures" / "ranked"
        written += draw_predictions(load(folder), folder, out=out, tokens=choice.tokens(), is_tall=True)
    return written


def _runs(group: RunGroup) -> dict[str, RunScores]:
    return {
        str(number): RunScores(
            metrics=numbers_of(run),
            steps=int(run.log.last_step or 0),
            seconds=None,
            conflict_share=None,
            group_conflict_share=None,
            cosines={},
        )
        for number, run in enumerate(group.runs)
    }
