"""Every balancing method on overlaid digits, over seeds, against single-task runs: one table and one JSON file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from perception.balancing import balancer_names
from perception.balancing.build import Spec
from perception.engine.digits_table import describe_runs, digits_page, score_runs
from perception.engine.digits_training import (
    METRICS,
    TASKS,
    DigitsNet,
    DigitsSettings,
    make_wrapper,
    train_digits,
)
from perception.engine.run_folder import describe_environment, to_plain
from perception.utils import Progress, did_you_mean, read_json, write_bytes_atomic, write_json_atomic

RESULT_FILE = "digits.json"
TABLE_FILE = "digits.md"

# The schedules of wPCGrad name two tasks and 24 epochs: here the two digits, stretched over the run.
_DIGITS_SCHEDULE = {"name": "static", "tasks": ("left", "right"), "stretch": True}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"left": 1.0, "right": 1.0, "recon": 10.0}},
    "wpcgrad-seg-vel": {"priority": {**_DIGITS_SCHEDULE, "schedule": "seg_to_vel"}},
    "wpcgrad-vel-seg": {"priority": {**_DIGITS_SCHEDULE, "schedule": "vel_to_seg"}},
    "recon_scores": {"num_layers": 1},  # of the trunk's two linear layers and two norms
}
# Methods that follow validation scores must know that a lower reconstruction error is a better one.
_FOLLOW_SCORES = ("achievement", "amtl", "dtp")
_SCORES_LAYERS, _SPLITS_LAYERS = "recon_scores", "recon"


def digits_spec(name: str, potentials: Mapping[str, float], layers: Sequence[str] = ()) -> Spec:
    """A method with what it needs to know of the three tasks.

    Args:
        name: of `balancer_names()`.
        potentials: task → validation score of its single-task runs.
        layers: for `recon`, what `recon_scores` found.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> digits_spec("pcgrad", {})
        'pcgrad'
    """
    if name not in balancer_names():
        raise ValueError(
            f"unknown balancer {name!r}.{did_you_mean(name, balancer_names())} Known: {', '.join(balancer_names())}"
        )
    if any(part in _FOLLOW_SCORES for part in name.split("+")):
        return {"name": name, "potentials": dict(potentials), "lower_is_better": ("recon",)}
    if name == _SPLITS_LAYERS:
        return {"name": name, "layers": tuple(layers)}
    return {"name": name, **_ARGUMENTS[name]} if name in _ARGUMENTS else name


def check_digits_methods(names: Iterable[str], settings: DigitsSettings) -> dict[str, str]:
    """Build and prepare each method without training.

    Returns:
        Method → why it cannot run here.

    Raises:
        ValueError: an unknown name.
    """
    problems = {}
    for name in names:
        spec = digits_spec(name, dict.fromkeys(TASKS, 0.5), layers=["trunk.1.0"])
        try:
            make_wrapper(DigitsNet(width=settings.width), spec, settings)
        except (ValueError, TypeError) as error:
            problems[name] = str(error)
    return problems


def run_digits_benchmark(
    methods: Sequence[str] | None = None,
    *,
    num_seeds: int = 3,
    out: str | Path,
    settings: DigitsSettings | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run single tasks, then methods; a finished run is read from its file, a failed one is tried again.

    Args:
        methods: names of `balancer_names()`; None: all of them that can run here. Each run of `recon` splits the layers
            that the same seed of `recon_scores` found, which is run too.
        num_seeds: seeds 0, 1, …
        out: folder of `digits.json`, `digits.md` and `runs/`.
        settings: of all runs.
        command: recorded.
        say: gets one line per finished run.

    Returns:
        What `digits.json` holds.

    Raises:
        ValueError: an unknown name, a method that cannot run here though it was asked for, no seed, or runs of other
            settings in `out`.
    """
    settings = settings or DigitsSettings()
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; allowed: 1 or more")
    names = list(dict.fromkeys(balancer_names() if methods is None else methods))
    if _SPLITS_LAYERS in names:  # after the run whose layers it splits
        names = [_SCORES_LAYERS, *(name for name in names if name != _SCORES_LAYERS)]
    left_out = check_digits_methods(names, settings)
    if left_out and methods is not None:
        raise ValueError("; ".join(f"{name!r} cannot run here: {why}" for name, why in left_out.items()))
    names = [name for name in names if name not in left_out]
    runs = _Runs(Path(out), settings, total=(len(TASKS) + len(names)) * num_seeds, say=say)
    seeds = range(num_seeds)
    singles = {task: runs.run_all(f"single-{task}", dict.fromkeys(seeds, "sum"), (task,)) for task in TASKS}
    if not all(singles.values()):
        raise RuntimeError(f"a single-task run failed: {runs.failed}; there is nothing to compare with")
    potentials = {
        task: fmean(run["val_metrics"][METRICS[task]] for run in singles[task].values()) for task in TASKS
    }
    finished: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:
        needed = finished[_SCORES_LAYERS] if name == _SPLITS_LAYERS else dict.fromkeys(seeds, {})
        specs = {
            seed: digits_spec(name, potentials, run.get("recon_layers", ())) for seed, run in needed.items()
        }
        finished[name] = runs.run_all(name, specs, TASKS)
    runs.progress.close()
    result = {
        "command": command,
        "hardware": _hardware(),
        "settings": asdict(settings),
        "seeds": list(seeds),
        "single": {task: describe_runs(singles[task]) for task in TASKS},
        "methods": {name: score_runs(found, singles) for name, found in finished.items() if found},
        "left_out": left_out,
        "failed": runs.failed,
        "cpu_seconds": round(runs.cpu_seconds, 1),
    }
    result = to_plain(result)
    write_json_atomic(Path(out) / RESULT_FILE, result)
    write_bytes_atomic(Path(out) / TABLE_FILE, digits_page(result).encode())
    return result


class _Runs:
    def __init__(
        self, out: Path, settings: DigitsSettings, *, total: int, say: Callable[[str], None]
    ) -> None:
        self.folder = out / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings, self.say = settings, say
        self.failed: dict[str, str] = {}
        self.cpu_seconds = 0.0
        self.progress = Progress("Digits", total=total, unit="runs")

    def run_all(
        self, name: str, specs: Mapping[int, Spec], tasks: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        """Seed → finished run."""
        results = {}
        for seed, spec in specs.items():
            found = self._run(name, spec, tasks, seed)
            if found is not None:
                self.cpu_seconds += found["cpu_seconds"]
                results[seed] = found
            self.progress.advance()
        return results

    def _run(self, name: str, spec: Spec, tasks: Sequence[str], seed: int) -> dict[str, Any] | None:
        path = self.folder / f"{name}.seed{seed}.json"
        asked = to_plain({"spec": spec, "settings": asdict(self.settings)})
        if path.is_file():
            found = read_json(path)
            if {key: found.get(key) for key in asked} == asked:
                return found
            raise ValueError(
                f"{path} is of a run with other settings or single-task scores. Choose another --out, or delete it"
            )
        try:
            result = train_digits(spec, seed=seed, settings=self.settings, tasks=tasks)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            self.failed[f"{name}.seed{seed}"] = f"{type(error).__name__}: {error}"
            self.say(f"{name} seed {seed} FAILED: {error}")
            return None
        found = to_plain({"name": name, "seed": seed, **asked, **asdict(result)})
        write_json_atomic(path, found)
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
        self.say(f"{name} seed {seed}: {numbers}  ({result.cpu_seconds:.1f} s CPU)")
        return found


def _hardware() -> dict[str, Any]:
    """What the results depend on; of the machine no name and no path, so that the file can be published."""
    found = describe_environment()
    packages = {name: found["packages"][name] for name in ("torch", "torchjd", "numpy", "mmengine")}
    return {**{key: found[key] for key in ("cpu", "threads", "python")}, "packages": packages}


def use_one_thread() -> None:
    """Networks this small are slower on several threads."""
    torch.set_num_threads(1)
