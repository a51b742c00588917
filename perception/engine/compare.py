"""Train one config with several balancers and seeds, one after the other, and put their scores into one table."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from perception.checkpoint import CHECKPOINTS_DIR
from perception.config import ConfigError
from perception.config.load import copy_plain
from perception.engine.compare_plan import PlannedRun, find_teachers, measure_model
from perception.engine.compare_scores import (
    DEFAULT_SCORES,
    RunScores,
    comparison_page,
    describe_group,
    read_run,
    score_group,
)
from perception.engine.compare_table import PaperTable
from perception.engine.pseudo_labels import write_pseudo_labels
from perception.engine.run import train
from perception.engine.run_folder import describe_environment, to_plain
from perception.utils import get_logger, write_bytes_atomic, write_json_atomic

logger = get_logger("engine")

RESULT_FILE = "compare.json"
PAGE_FILE = "compare.md"
_SINGLE = "single-"


def find_single_runs(folder: str | Path) -> dict[str, RunScores] | None:
    """Finished single-task runs of earlier: a run folder, or a folder of run folders `seed<k>`.

    Returns:
        Seed or folder name → scores; None if the path is no such folder, so that it may be a config's name.

    Raises:
        ConfigError: run folders without a finished evaluation.
    """
    path = Path(folder)
    candidates = [path] if (path / "config.json").is_file() else sorted(path.glob("seed*"))
    if not path.is_dir() or not candidates:
        return None
    found = {candidate.name: read_run(candidate) for candidate in candidates}
    for name, scores in found.items():
        if scores is None:
            raise ConfigError(
                f"the single-task run {path / name if name != path.name else path} is not finished"
            )
    return {name: scores for name, scores in found.items() if scores is not None}


def compare(
    runs: Sequence[PlannedRun],
    *,
    work_dir: str | Path,
    config: str,
    command: str,
    singles: Mapping[str, Mapping[str, RunScores]] | None = None,
    single_folders: Mapping[str, str | Path] | None = None,
    scores: Mapping[str, Sequence[str]] | None = None,
    reference: str | None = None,
    table: PaperTable | None = None,
    is_reading_only: bool = False,
) -> dict[str, Any]:
    """Train what is not finished yet; `compare.json` and `compare.md` are written anew after each run.

    A finished run is skipped, an unfinished one resumed; a failed one is reported, and the next begins.

    Args:
        runs: of `plan_runs`, in their order.
        work_dir: folder of the two files.
        config: name of the config, for the page.
        command: recorded.
        singles: task → finished single-task runs of earlier, beside those in `runs`.
        single_folders: task → where they are.
        scores: task → metrics in Δm and Acc_MTL; by default NDS and mIoU.
        reference: balancer against which the page gives the other rows' metrics in per cent.
        table: a paper's table, which the page shows beside our numbers.
        is_reading_only: train nothing; the table is that of the finished runs.

    Returns:
        What `compare.json` holds; `failed` names the runs that failed.

    Raises:
        TrainingTerminated: SIGTERM came; the run saved a checkpoint.
    """
    root = Path(work_dir)
    root.mkdir(parents=True, exist_ok=True)
    folders = single_folders or {}
    sizes = {task: measure_model(folder) for task, folder in folders.items()}
    sizes |= {run.group.removeprefix(_SINGLE): run.num_parameters for run in runs}
    finished: dict[PlannedRun, RunScores] = {}
    failed: dict[PlannedRun, str] = {}
    for run in runs:
        scored = read_run(run.folder, num_steps=run.num_steps)
        if scored is not None:
            finished[run] = scored
    result: dict[str, Any] = {}

    def write() -> None:
        result.clear()
        result.update(config=config, command=command, hardware=describe_environment(), reference=reference)
        result.update(_summarise(runs, finished, failed, singles or {}, scores or DEFAULT_SCORES))
        result["parameters"] = {
            **{f"single {task}": sizes[task] for task in result["single"] if task in sizes},
            **{label: sizes[label] for label in result["balancers"]},
        }
        write_json_atomic(root / RESULT_FILE, to_plain(result))
        page = comparison_page(result) + ("" if table is None else "\n" + table.page(result))
        write_bytes_atomic(root / PAGE_FILE, page.encode())

    write()
    for number, run in enumerate(() if is_reading_only else runs, start=1):
        what = f"run {number}/{len(runs)}: {run.group}, seed {run.seed}"
        if run in finished:
            logger.info("%s is finished already", what)
            continue
        logger.info("%s, %d steps, in %s", what, run.num_steps, run.folder)
        try:
            if run.pseudo_root is not None:
                teachers = find_teachers(runs, folders, seed=run.seed)
                write_pseudo_labels(teachers, out=run.pseudo_root, images=run.cfg)
            _train(run)
            scored = read_run(run.folder, num_steps=run.num_steps)
            if scored is None:
                raise RuntimeError(f"the run ended without an evaluation at step {run.num_steps}")
            finished[run] = scored
        except Exception as error:  # noqa: BLE001  whatever ends one run must not end the others
            logger.exception("%s failed", what)
            failed[run] = f"{type(error).__name__}: {error}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write()
    return to_plain(result)


def _train(run: PlannedRun) -> None:
    if not any((run.folder / CHECKPOINTS_DIR).glob("step_*")):
        train(run.cfg)
        return
    # With load_from, `resume` would take that checkpoint instead of the run's own.
    kept = {key: value for key, value in copy_plain(run.cfg._cfg_dict).items() if key != "load_from"}
    train(Config(kept, format_python_code=False), resume=True)


def _summarise(
    runs: Sequence[PlannedRun],
    finished: Mapping[PlannedRun, RunScores],
    failed: Mapping[PlannedRun, str],
    singles: Mapping[str, Mapping[Any, RunScores]],
    scores: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    groups: dict[str, dict[Any, RunScores]] = {run.group: {} for run in runs}
    for run in runs:
        if run in finished:
            groups[run.group][run.seed] = finished[run]
    trained = {
        group.removeprefix(_SINGLE): found for group, found in groups.items() if group.startswith(_SINGLE)
    }
    baselines: dict[str, Mapping[Any, RunScores]] = {**singles, **trained}
    notes: list[str] = []
    specs = {run.group: run.cfg.optim_wrapper.get("balancer") for run in runs}
    return {
        "seeds": sorted({run.seed for run in runs}),
        "scores": {task: list(names) for task, names in scores.items()},
        "single": {task: describe_group(found) for task, found in baselines.items() if found},
        "balancers": {
            label: {
                "balancer": specs[label],
                **describe_group(found),
                **score_group(found, baselines, scores, notes),
            }
            for label, found in groups.items()
            if found and not label.startswith(_SINGLE)
        },
        "failed": [f"{run.group} seed {run.seed}: {why}" for run, why in failed.items()],
        "unfinished": [
            f"{run.group} seed {run.seed}" for run in runs if run not in finished and run not in failed
        ],
        "notes": notes,
    }
