"""Which runs a comparison has, and everything that can be known to be wrong with them before the first one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.config import Config
from torch import nn

from perception.balancing import build_balancer
from perception.balancing.build import Spec
from perception.config import ConfigError
from perception.config.load import copy_plain, load_config
from perception.engine.balanced_backward import BalancedBackward, lower_is_better_tasks
from perception.engine.pseudo_labels import PSEUDO_KEY, Teacher
from perception.engine.run_folder import CONFIG_FILE, hash_config
from perception.engine.runner import PerceptionRunner
from perception.engine.task_forwards import prepare_model
from perception.registry import MODELS
from perception.utils import did_you_mean, read_json

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = "single-"
_FOLLOW_SCORES = {"achievement", "amtl", "dtp"}


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRun:
    """One training.

    Attributes:
        group: label of its balancer, or `single-<task>`.
        seed: of the run.
        cfg: the whole config, `work_dir` included.
        num_steps: after which it is finished.
        num_parameters: of the model.
        pseudo_root: folder of the pseudo labels that it learns from, if the comparison makes them.
    """

    group: str
    seed: int
    cfg: Config
    num_steps: int
    num_parameters: int
    pseudo_root: Path | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.cfg.work_dir)


def read_balancers(
    names: Sequence[str], path: str | Path | None = None, *, among: Mapping[str, Spec] | None = None
) -> dict[str, Spec]:
    """Label → balancer, of names and of a JSON file `{"label": name or {"name": ..., arguments}}`.

    Args:
        names: names of balancers, which are their labels too.
        path: the file.
        among: balancers that are there already, in front of these.

    Raises:
        ConfigError: no balancer, a label twice or unfit for a folder, or a file that is no such JSON.

    Example:
        >>> read_balancers(["sum", "pcgrad"])
        {'sum': 'sum', 'pcgrad': 'pcgrad'}
    """
    pairs: list[tuple[str, Spec]] = [*(among or {}).items(), *((name, name) for name in names)]
    if path is not None:
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the balancers' file {path} cannot be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(
                f"the balancers' file {path} holds {type(content).__name__}; allowed: an object of labels, e.g. "
                '{"cagrad-0.2": {"name": "cagrad", "c": 0.2}}'
            )
        pairs += content.items()
    found: dict[str, Spec] = {}
    for label, spec in pairs:
        if not _LABEL.fullmatch(label) or label.startswith(_RESERVED):
            raise ConfigError(
                f"the balancer's label {label!r} cannot be a folder's name; use letters, digits and . _ + -, and do "
                f"not begin with {_RESERVED!r}"
            )
        if label in found:
            raise ConfigError(
                f"the balancer {label!r} is given twice; give one of them another label in the file"
            )
        found[label] = spec
    if not found:
        raise ConfigError(
            "there is no balancer to compare; give --balancers sum,pcgrad,..., --balancers-file or --plan"
        )
    return found


def plan_runs(
    cfg: Config,
    balancers: Mapping[str, Spec],
    *,
    num_seeds: int,
    work_dir: str | Path,
    singles: Mapping[str, Config] | None = None,
    single_metrics: Mapping[str, float] | None = None,
    use_pseudo_labels: bool = False,
) -> list[PlannedRun]:
    """Make and check every run: single tasks first, then all balancers by seed, so that each seed completes a table.

    Models and training sets are built once per config; nothing is written.

    Args:
        cfg: the multi-task config; not changed.
        balancers: label → balancer; each takes the place of the config's own.
        num_seeds: seeds 0, 1, …
        work_dir: run folders are `<work_dir>/<label>/seed<k>`.
        singles: task → config of its single-task model.
        single_metrics: metric → mean over finished single-task runs. A balancer that needs potentials and is given
            none takes them from here, by the model's `kpi_metrics`.
        use_pseudo_labels: the multi-task runs of a seed learn also from `<work_dir>/pseudo/seed<k>`.

    Raises:
        ConfigError: an unknown name or argument, a balancer that does not fit the model's tasks, a config without an
            evaluation at its end, or a run folder that holds a run of another config. All problems at once.
    """
    problems: list[str] = []
    runs = []
    root = Path(work_dir)
    groups: list[tuple[str, Config, Mapping[str, Spec | None]]] = [
        (f"single {task}", single, {f"{_RESERVED}{task}": None}) for task, single in (singles or {}).items()
    ]
    groups.append(("the config", cfg, balancers))
    for what, base, specs in groups:
        setting = _measure(base, what, problems)
        if setting is None:
            continue
        is_taught = use_pseudo_labels and base is cfg
        if is_taught and getattr(setting["model"], "label_weights", None) is None:
            problems.append(
                f"{what} gives pseudo labels no weight; set model.label_weights, in MCLGS dict(gt=0.8, pseudo=0.2)"
            )
        for label, given in specs.items():
            spec = None if given is None else fill_potentials(given, setting["model"], single_metrics or {})
            wrapper = _with_balancer(base, spec, label, setting, problems)
            for seed in range(num_seeds):
                pseudo_root = root / "pseudo" / f"seed{seed}" if is_taught else None
                runs.append(
                    PlannedRun(
                        group=label,
                        seed=seed,
                        num_steps=setting["num_steps"],
                        num_parameters=count_parameters(setting["model"]),
                        cfg=_changed(base, root / label / f"seed{seed}", seed, wrapper, pseudo_root),
                        pseudo_root=pseudo_root,
                    )
                )
    runs.sort(
        key=lambda run: (not run.group.startswith(_RESERVED), run.seed)
    )  # stable: labels keep their order
    for run in runs:
        written = run.folder / CONFIG_FILE
        if written.is_file() and hash_config(read_json(written)) != hash_config(run.cfg.to_dict()):
            problems.append(f"{run.folder} holds a run of another config; choose another --work-dir")
    if problems:
        raise ConfigError("the comparison cannot start:", problems=problems)
    return runs


def fill_potentials(spec: Spec, model: Any, metrics: Mapping[str, float]) -> Spec:
    """A balancer by validation scores with the potentials that single-task runs reached, if it names none itself.

    Args:
        spec: any balancer.
        model: has `kpi_metrics`: task → metrics whose mean is its score.
        metrics: of the single-task runs.

    Returns:
        The balancer as it was, where it needs no potentials, has some, or a metric is missing.
    """
    arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
    parts = set(str(arguments.get("name")).split("+"))
    kpis: Mapping[str, Sequence[str]] = getattr(model, "kpi_metrics", {})
    wanted = {name for names in kpis.values() for name in names}
    is_given = any(key in arguments for key in ("potentials", "achievement", "dtp"))
    if not parts & _FOLLOW_SCORES or is_given or not kpis or not wanted <= set(metrics):
        return spec
    return {
        **arguments,
        "potentials": {task: fmean(metrics[name] for name in names) for task, names in kpis.items()},
        "lower_is_better": lower_is_better_tasks(kpis),
    }


def measure_model(run_folder: str | Path) -> int:
    """Number of parameters of a finished run's model, or of that of a folder of runs `seed<k>`.

    Raises:
        ConfigError: its config cannot be read.
    """
    path = Path(run_folder)
    folder = path if (path / CONFIG_FILE).is_file() else sorted(path.glob("seed*"))[0]
    return count_parameters(MODELS.build(load_config(folder).model))


def count_parameters(model: nn.Module) -> int:
    """Number of a model's parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def _measure(cfg: Config, what: str, problems: list[str]) -> dict[str, Any] | None:
    """What a balancer is told of a run; None where the config cannot be compared."""
    train_cfg = cfg.get("train_cfg") or {}
    if cfg.get("train_dataloader") is None:
        problems.append(f"{what} has no train_dataloader")
        return None
    if cfg.get("val_dataloader") is None or train_cfg.get("val_interval") == 0:
        problems.append(
            f"{what} has no evaluation at its end; give val_dataloader, and not train_cfg.val_interval=0"
        )
        return None
    length = len(PerceptionRunner.build_dataloader(cfg.train_dataloader))
    model = MODELS.build(cfg.model)
    is_by_epoch = train_cfg.get("by_epoch", True)
    num_steps = train_cfg["max_epochs"] * length if is_by_epoch else train_cfg["max_iters"]
    return {"model": model, "num_steps": num_steps, "max_epochs": -(-num_steps // max(length, 1))}


def _with_balancer(
    cfg: Config, spec: Spec | None, label: str, setting: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
    """The optimiser wrapper's config with a balancer; None keeps the config's own."""
    wrapper = copy_plain(cfg._cfg_dict)["optim_wrapper"]
    if spec is None:
        return wrapper
    wrapper["balancer"] = spec
    try:
        balancer = build_balancer(spec)
        if not (balancer.needs_gram or balancer.needs_gradients):  # it would refuse what it has no use for
            wrapper.pop("gradient_source", None)
            wrapper.pop("interval", None)
        if balancer.needs_task_forwards or balancer.rotates_features:
            wrapper.pop("watch", None)
        balanced = BalancedBackward(
            balancer=balancer,
            gradient_source=wrapper.get("gradient_source", "parameters"),
            interval=wrapper.get("interval", 1),
            gram_interval=(wrapper.get("watch") or {}).get("gram_interval", 0),
            bucket_mb=wrapper.get("bucket_mb", 25.0),
            accumulative_counts=wrapper.get("accumulative_counts", 1),
        )
        steps = -(-setting["num_steps"] // wrapper.get("accumulative_counts", 1))
        model = prepare_model(balancer, setting["model"])
        names = getattr(model, "task_names", ())
        balanced.prepare(model, names, max_epochs=setting["max_epochs"], total_steps=steps, seed=0)
    except (ValueError, TypeError) as error:
        problems.append(f"balancer {label!r}: {error}")
    return wrapper


def _changed(
    cfg: Config, folder: Path, seed: int, wrapper: dict[str, Any], pseudo_root: Path | None
) -> Config:
    randomness = {**(cfg.get("randomness") or {}), "seed": seed}
    changes = {"work_dir": str(folder), "randomness": randomness, "optim_wrapper": wrapper}
    changed = {**copy_plain(cfg._cfg_dict), **changes}
    if pseudo_root is not None:
        changed["train_dataloader"]["dataset"][PSEUDO_KEY] = str(pseudo_root)
    return Config(changed, format_python_code=False)


def find_teachers(
    runs: Sequence[PlannedRun], folders: Mapping[str, str | Path], *, seed: int
) -> list[Teacher]:
    """The single-task models that label for the runs of a seed: of that seed, if there is such a run.

    Args:
        runs: of the comparison.
        folders: task → run folder of earlier, or folder of runs `seed<k>`.
        seed: of the run that learns.

    Raises:
        ConfigError: there is none.
    """
    found = [
        Teacher(cfg=run.cfg, weights=run.folder)
        for run in runs
        if run.group.startswith(_RESERVED) and run.seed == seed
    ]
    for folder in folders.values():
        choices = [Path(folder) / f"seed{seed}", Path(folder), *sorted(Path(folder).glob("seed*"))]
        path = next(choice for choice in choices if (choice / CONFIG_FILE).is_file())
        found.append(Teacher(cfg=load_config(path), weights=path))
    if not found:
        raise ConfigError("pseudo labels need single-task models as teachers; give --single det=...,seg=...")
    return found


def read_scores(text: str) -> dict[str, tuple[str, ...]]:
    """Task → metrics, of `det=NDS+mAP,seg=mIoU`.

    Raises:
        ConfigError: another form, or a task twice.

    Example:
        >>> read_scores("det=NDS+mAP,seg=mIoU")
        {'det': ('NDS', 'mAP'), 'seg': ('mIoU',)}
    """
    return {task: tuple(value.split("+")) for task, value in read_pairs(text, "--scores").items()}


def read_pairs(text: str, option: str, allowed: Sequence[str] | None = None) -> dict[str, str]:
    """`a=x,b=y` as a dict.

    Raises:
        ConfigError: another form, a name twice, or one that is not allowed.
    """
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name or not value or name in pairs:
            raise ConfigError(
                f"{option} has the part {part!r}; allowed: NAME=VALUE,NAME=VALUE with each name once"
            )
        if allowed is not None and name not in allowed:
            raise ConfigError(
                f"{option} names the task {name!r}.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}; "
                "other tasks come with --scores"
            )
        pairs[name] = value
    return pairs
