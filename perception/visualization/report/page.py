"""The page: all sections put into the template, and the file."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from perception.config import ConfigError
from perception.utils import did_you_mean, write_bytes_atomic
from perception.visualization.comparability import same_data, warnings_of
from perception.visualization.report.balancing import balances, conflict_chart, pair_table
from perception.visualization.report.costs import cost_rows
from perception.visualization.report.differences import config_differences, environment_rows
from perception.visualization.report.headlines import BASELINES, headlines, is_image
from perception.visualization.report.pictures import choose_samples, other_pictures, shown_samples
from perception.visualization.report.scores import class_tables, multi_task_cells, run_tables, runs_table
from perception.visualization.report.training import loss_charts, rate_chart, score_charts
from perception.visualization.run_groups import RunGroup, read_groups
from perception.visualization.run_summary import NO_PICTURES, TP_ERRORS

ScoreGroups = Callable[[Sequence[RunGroup], list[str]], Mapping[str, Mapping[str, Any]]]
"""Gives Δm and Acc_MTL of methods: label → `delta_m_drop`, `delta_m_gain`, `acc_mtl`; notes go into the list."""

_MAX_DIFFERENCES = 120


def write_report(
    folders: str | Path | Sequence[str | Path],
    out_path: str | Path | None = None,
    *,
    singles: Mapping[str, str | Path] | None = None,
    reference: str | None = None,
    score_groups: ScoreGroups | None = None,
    num_samples: int = 1,
) -> Path:
    """Write the report of runs as one HTML file that works offline.

    Pictures and charts are inlined; nothing is fetched. What the folders lack is said on the page.

    Args:
        folders: run folders, folders of `seed<k>`, or a folder of `perception compare`. A run folder holds
            config.json, env.json, log.jsonl, metrics.json, summary.json and pictures/; each may be missing.
        out_path: the page; by default `report.html` in the folder, of several in the folder above all of them.
        singles: task → run folder of its single-task baseline.
        reference: label of the method that differences are from; by default the first.
        score_groups: gives Δm and Acc_MTL; without it they are left out.
        num_samples: samples of each kind (best, worst, most changed) that are shown.

    Returns:
        The page's path.

    Raises:
        DataError: a folder is no run folder, or one of its files is damaged.
        ConfigError: no method is called `reference`.
    """
    paths = [folders] if isinstance(folders, str | Path) else list(folders)
    groups = read_groups(paths, singles=singles)
    path = default_path(paths) if out_path is None else Path(out_path)
    context = _context(groups, find_reference(groups, reference), score_groups, num_samples)
    context["commands"] = _commands(groups, paths)
    page = _environment().get_template("report.html.j2").render(**context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, page.encode("utf-8"))
    return path


def default_path(folders: Sequence[str | Path]) -> Path:
    """`report.html` in the only folder, or in the folder that holds all of them."""
    resolved = [Path(folder).resolve() for folder in folders]
    if len(resolved) == 1:
        return Path(folders[0]) / "report.html"
    common = next(
        parent for parent in resolved[0].parents if all(path.is_relative_to(parent) for path in resolved)
    )
    return common / "report.html"


def find_reference(groups: Sequence[RunGroup], label: str | None) -> RunGroup:
    """The method that differences are from.

    Raises:
        ConfigError: none is called so.
    """
    labels = [group.label for group in groups]
    if label is not None and label not in labels:
        hint = did_you_mean(label, labels)
        raise ConfigError(f"--reference {label!r}: no such run.{hint} Allowed: {', '.join(labels)}")
    return groups[0 if label is None else labels.index(label)]


def _context(
    groups: Sequence[RunGroup], reference: RunGroup, score_groups: ScoreGroups | None, num_samples: int
) -> dict[str, Any]:
    is_one = len(groups) == 1
    notes: list[str] = []
    comparable = [group for group in groups if same_data(group, reference)]
    scored = score_groups(comparable, notes) if score_groups is not None else {}
    multi_task = multi_task_cells(scored)
    compared = None if is_one else reference
    samples = shown_samples(choose_samples(groups, reference, num=num_samples), notes)
    pictures = other_pictures(groups, notes, has_ranked=bool(samples))
    shared_env, differing_env = environment_rows(groups)
    differences = [] if is_one else config_differences(groups)
    pairs, pair_rows = pair_table(groups)
    page_headlines = headlines(groups, reference)
    notes += _notes(groups, has_pictures=bool(samples))
    folder = reference.first.summary.folder.resolve()
    return {
        "title": _title(groups),
        "subtitle": _subtitle(groups),
        "is_one": is_one,
        "is_image": is_image(groups),
        "groups": groups,
        "reference": reference,
        "has_seeds": any(len(group.runs) > 1 for group in groups),
        "warnings": warnings_of(groups, reference),
        "headlines": page_headlines,
        "runs": None if is_one and len(reference.runs) == 1 else runs_table(groups, compared, multi_task),
        "classes": run_tables(reference) if is_one else class_tables(groups, compared),
        "units": TP_ERRORS,
        "multi_task": multi_task,
        "samples": samples,
        "pictures": pictures,
        "losses": loss_charts(groups),
        "rate": rate_chart(groups),
        "scores": score_charts(groups),
        "balances": balances(groups),
        "conflicts": None if is_one else conflict_chart(groups),
        "pairs": pairs,
        "pair_rows": [] if is_one else pair_rows,
        "costs": cost_rows(groups),
        "differences": differences[:_MAX_DIFFERENCES],
        "num_more_differences": max(len(differences) - _MAX_DIFFERENCES, 0),
        "environment": shared_env,
        "environment_differences": differing_env,
        "configs": [
            (group.label, json.dumps(group.first.summary.config, indent=2, ensure_ascii=False))
            for group in groups
            if group.first.summary.config
        ],
        "missing": notes,
        "folder": folder.name,
    }


def _title(groups: Sequence[RunGroup]) -> str:
    names = {str(group.first.summary.config.get("experiment_name") or "") for group in groups}
    if len(groups) == 1:
        return names.pop() or groups[0].label
    labels = [group.label for group in groups if group.task is None] or [group.label for group in groups]
    return " · ".join(labels) if len(labels) <= 3 else f"{len(labels)} methods compared"


def _subtitle(groups: Sequence[RunGroup]) -> str:
    kind = (
        "boxes and segmentation in single images"
        if is_image(groups)
        else "3D boxes and bird's-eye-view map from six cameras"
    )
    runs = [run for group in groups for run in group.runs]
    if len(runs) == 1:
        return f"{kind} · run {runs[0].summary.folder.resolve().name}"
    return f"{kind} · {len(runs)} runs"


def _notes(groups: Sequence[RunGroup], *, has_pictures: bool) -> list[str]:
    """What is missing, each sentence once, with the runs it is said of."""
    said: dict[str, list[str]] = {}
    num_runs = sum(len(group.runs) for group in groups)
    for group in groups:
        for run in group.runs:
            label = group.label if len(group.runs) == 1 else f"{group.label}/{run.summary.folder.name}"
            for sentence in [*run.summary.missing, *_gaps(group, num_runs)]:
                if has_pictures and sentence == NO_PICTURES:
                    continue
                labels = said.setdefault(sentence, [])
                labels += [] if label in labels else [label]
    return [
        sentence
        if num_runs == 1
        else f"{', '.join(labels) if len(labels) < num_runs else 'All runs'}: {sentence}"
        for sentence, labels in said.items()
    ]


def _gaps(group: RunGroup, num_runs: int) -> list[str]:
    summary = group.first.summary
    found = []
    if summary.metrics and not any(key.startswith("AP/") for key in group.metrics):
        found.append(
            "metrics.json holds no detection scores per class (the model may have no detection head)."
        )
    if summary.metrics and not any(key.startswith("IoU/") for key in group.metrics):
        found.append("metrics.json holds no IoU per class (the model may have no segmentation head).")
    if not summary.metrics:
        found.append("there was no evaluation, so no scores; `perception test RUN` makes one.")
    if num_runs == 1 and summary.summary:
        for key, label in BASELINES.items():
            if all(summary.baseline(key, name) is None for name in ("NDS", "mIoU", "AP")):
                found.append(f"summary.json holds no scores of the {label} to compare with.")
        if not cost_rows([group]):
            found.append("summary.json holds no times, speed or memory.")
    return found


def _commands(groups: Sequence[RunGroup], paths: Sequence[str | Path]) -> list[str]:
    """Shell commands that repeat the report's runs; folders by their last two parts, as in work_dirs/<name>."""
    names = []
    for path in paths:
        folder = Path(path).resolve()
        names.append(shlex.quote(f"{folder.parent.name}/{folder.name}"))
    run = groups[0].first.summary
    lines = []
    if len(groups) == 1 and len(groups[0].runs) == 1:
        recorded = run.env.get("command") or run.summary.get("command")
        folder = run.folder.resolve()
        config = shlex.quote(f"{folder.parent.name}/{folder.name}/config.json")
        lines += [str(recorded)] if recorded else [f"perception train {config}"] if run.config else []
        lines.append(f"perception test {names[0]}")
    return [*lines, f"perception report {' '.join(names)}"]


def breakable(text: str) -> Markup:
    """A name that may be broken after its joints, not within its words.

    Example:
        >>> str(breakable("a_b.c"))
        'a_<wbr>b.<wbr>c'
    """
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(text))))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def _read_template(name: str) -> str:
    folder = resources.files("perception.visualization") / "templates"
    return (folder / name).read_text(encoding="utf-8")
