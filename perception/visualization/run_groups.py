"""Which run folders belong together: the seeds of one method are one row of every table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.utils import DataError
from perception.utils.seed_statistics import SeedMean, metrics_over_seeds
from perception.visualization.run_log import RunLog
from perception.visualization.run_summary import RunSummary, number

_SINGLE = "single-"
_RUN_FILES = ("config.json", "log.jsonl", "metrics.json", "summary.json", "env.json")
_NOT_COMPARED = ("work_dir", "experiment_name", "resume", "load_from", "launcher", "log_level", "visualizer")


@dataclass
class Run:
    """One run folder, read."""

    summary: RunSummary
    log: RunLog

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder; where it has no metrics.json, the scores are those of the log's last evaluation."""
        run = cls(summary=RunSummary.read(folder), log=RunLog.read(folder / "log.jsonl"))
        if not run.summary.metrics and run.log.last_metrics:
            run.summary.metrics = run.log.last_metrics
            missing = run.summary.missing
            missing[:] = [note for note in missing if not note.startswith("metrics.json")]
            missing.append("metrics.json is missing: the scores are those of the last evaluation in the log.")
        run.summary.missing += run.log.notes
        return run

    @property
    def seed(self) -> Any:
        """The configuration's seed, None where it has none."""
        randomness = self.summary.config.get("randomness")
        return randomness.get("seed") if isinstance(randomness, Mapping) else None


@dataclass
class RunGroup:
    """Runs that differ in their seed only.

    Attributes:
        label: what the report calls them.
        runs: at least one.
        task: of a single-task baseline, that Δm is measured against; else None.
        colour: number of its colour.
    """

    label: str
    runs: list[Run]
    task: str | None = None
    colour: int = 0
    metrics: dict[str, SeedMean] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics = metrics_over_seeds([numbers_of(run) for run in self.runs])

    @property
    def first(self) -> Run:
        """The run whose curves and pictures are shown where there is room for one."""
        return self.runs[0]

    def over_seeds(self, name: str) -> SeedMean | None:
        """A score's mean over the seeds; None where a run lacks it."""
        return self.metrics.get(name)


def numbers_of(run: Run) -> dict[str, float]:
    """The scores of a run that are finite numbers."""
    return {
        name: value for name, given in run.summary.metrics.items() if (value := number(given)) is not None
    }


def read_groups(
    folders: Sequence[str | Path], *, singles: Mapping[str, str | Path] | None = None
) -> list[RunGroup]:
    """Read runs and put together what differs in the seed only.

    Args:
        folders: run folders; folders of `seed<k>`; folders of `perception compare`, whose `single-<task>` are
            baselines.
        singles: task → run folder, or folder of `seed<k>`, of its single-task baseline.

    Returns:
        Baselines last.

    Raises:
        DataError: a folder holds no run, or a run's file is damaged.
    """
    found: dict[Path, tuple[str, str | None]] = {}  # run folder → label and task
    for folder in folders:
        for path in find_runs(folder):
            found.setdefault(path.resolve(), _label(path))
    for task, folder in (singles or {}).items():
        for path in find_runs(folder):
            found[path.resolve()] = (f"{_SINGLE}{task}", task)
    rows: dict[tuple[str, str | None], list[Run]] = {}
    for path, key in found.items():
        run = Run.read(path)
        if path.name.startswith("seed"):
            rows.setdefault((f"{path.parent}", key[1]), []).append(run)
        else:
            rows.setdefault(_place(rows, path, key[1], run), []).append(run)
    groups = [
        RunGroup(label=found[_path(runs[0])][0], runs=runs, task=task) for (_, task), runs in rows.items()
    ]
    groups.sort(key=lambda group: group.task is not None)
    _tell_apart(groups)
    for colour, group in enumerate(groups):
        group.colour = colour
    return groups


def find_runs(folder: str | Path) -> list[Path]:
    """Run folders in a folder: itself, its `seed<k>`, or those of a comparison, the plain sum first.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such run folder", path=folder)
    if _is_run(folder):
        return [folder]
    seeds = [path for path in sorted(folder.glob("seed*")) if _is_run(path)]
    if seeds:
        return seeds
    inner = sorted(
        (path for path in folder.iterdir() if path.is_dir()), key=lambda p: (p.name != "sum", p.name)
    )
    found = [
        run
        for path in inner
        for run in ([path] if _is_run(path) else sorted(path.glob("seed*")))
        if _is_run(run)
    ]
    if not found:
        raise DataError(
            f"this is no run folder: it holds none of {', '.join(_RUN_FILES)}; nor does it hold run folders, or "
            "folders of seed<k>, as `perception compare` leaves them",
            path=folder,
        )
    return found


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what only says where and how the run was started."""
    return {key: value for key, value in config.items() if key not in _NOT_COMPARED}


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RUN_FILES)


def _label(path: Path) -> tuple[str, str | None]:
    folder = path.resolve()
    name = folder.parent.name if folder.name.startswith("seed") else folder.name
    return name, name.removeprefix(_SINGLE) if name.startswith(_SINGLE) else None


def _place(
    rows: Mapping[tuple[str, str | None], list[Run]], path: Path, task: str | None, run: Run
) -> tuple[str, str | None]:
    """The row of the runs with the same settings and another seed, or a new one."""
    own = _without_seed(run)
    for key, others in rows.items():
        seeds = [other.seed for other in others]
        if own and key[1] == task and run.seed not in seeds and _without_seed(others[0]) == own:
            return key
    return str(path), task


def _without_seed(run: Run) -> str:
    config = settings(run.summary.config)
    config.pop("randomness", None)
    return json.dumps(config, sort_keys=True) if config else ""


def _path(run: Run) -> Path:
    return run.summary.folder


def _tell_apart(groups: Iterable[RunGroup]) -> None:
    """Where two have one name, the folders above tell which is which."""
    groups = list(groups)
    labels = [group.label for group in groups]
    for group in groups:
        if labels.count(group.label) > 1:
            folder = _path(group.first)
            folder = folder.parent if folder.name.startswith("seed") else folder
            group.label = f"{folder.parent.name}/{folder.name}"
    labels = [group.label for group in groups]
    for index, group in enumerate(groups):
        if labels.count(group.label) > 1:
            group.label = f"{group.label} ({labels[: index + 1].count(group.label)})"
