"""One self-contained page about a run, from its folder's JSON and pictures only."""

import base64
import json
import shlex
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from perception.utils import iter_json_lines, write_bytes_atomic
from perception.visualization.balance import plot_balance
from perception.visualization.balance_records import BalanceRecords
from perception.visualization.curves import plot_metrics, training_curves
from perception.visualization.palette import CLASS_COLOURS, MAP_COLOURS, to_hex
from perception.visualization.run_summary import TP_ERRORS, RunSummary, number

_MAX_WIDTH = 2000
_JPEG_QUALITY = 88
_HEADLINES = {
    "NDS": "nuScenes detection score",
    "mAP": "mean average precision",
    "mIoU": "map IoU, mean of 3 classes",
}
_IMAGE_HEADLINES = {
    "AP50": "average precision of boxes at IoU 0.5",
    "AP": "average precision of boxes, mean over IoU 0.50 to 0.95",
    "mIoU": "IoU of segmentation, mean over the classes of the ground truth",
}
_BASELINES = {"untrained": "untrained model", "constant": "constant predictor"}
_PHASES = ("setup", "synthesize", "train", "evaluate")


def write_report(run_folder: str | Path, out_path: str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file that works offline.

    Pictures and curves are inlined; nothing is fetched. What the folder lacks is said on the page.

    Args:
        run_folder: holds config.json, env.json, log.jsonl, metrics.json, summary.json and pictures/; each may
            be missing.
        out_path: the page; `<run_folder>/report.html` by default.

    Returns:
        The page's path.

    Raises:
        DataError: `run_folder` is no run folder, or one of its files is damaged.
    """
    run = RunSummary.read(run_folder)
    path = run.folder / "report.html" if out_path is None else Path(out_path)
    page = _environment().from_string(_template()).render(**_context(run))
    write_bytes_atomic(path, page.encode("utf-8"))
    return path


def _context(run: RunSummary) -> dict[str, Any]:
    losses = _curve(run, training_curves, "The loss curves are missing")
    scores = _curve(run, plot_metrics, "Scores over time are missing")
    balance = _curve(run, plot_balance, "The balancing is missing") if _has_balance(run) else ""
    pictures = [(path.stem.replace("_", " "), _inline_picture(path, run.missing)) for path in run.pictures]
    class_rows, map_rows = run.class_rows(), run.map_rows()
    if run.metrics and not class_rows:
        run.missing.append(
            "metrics.json holds no detection scores per class (the model may have no detection head)."
        )
    if run.metrics and not map_rows:
        run.missing.append(
            "metrics.json holds no map IoU per class (the model may have no segmentation head)."
        )
    for key, label in _BASELINES.items():
        if run.summary and run.baseline(key, "NDS") is None and run.baseline(key, "mIoU") is None:
            run.missing.append(f"summary.json holds no scores of the {label} to compare with.")
    is_image = run.score("AP") is not None or run.is_segmentation()
    texts = _IMAGE_HEADLINES if is_image else _HEADLINES
    error_names = [] if is_image else list(TP_ERRORS)
    headlines = [_headline(run, name, text) for name, text in texts.items()]
    return {
        "title": str(run.config.get("experiment_name") or run.folder.resolve().name),
        "folder": run.folder.resolve().name,
        "headlines": headlines,
        "is_comparable": run.metrics.get("comparable", True) and run.metrics.get("seg_comparable", True),
        "errors": [
            (f"m{name}", value, unit)
            for (name, value), unit in zip(run.mean_errors().items(), TP_ERRORS.values(), strict=True)
            if name in error_names
        ],
        "error_names": error_names,
        "class_rows": [
            (
                name,
                {column: value for column, value in values.items() if column in ("AP", *error_names)},
                to_hex(CLASS_COLOURS.get(name, (153, 153, 153))),
            )
            for name, values in class_rows
        ],
        "map_rows": [
            (name, value, to_hex(MAP_COLOURS.get(name, (153, 153, 153)))) for name, value in map_rows
        ],
        "costs": _costs(run),
        "losses": losses,
        "scores": scores,
        "balance": balance,
        "pictures": [(caption, data) for caption, data in pictures if data],
        "config": json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
        "env": _rows(run.env),
        "commands": _commands(run),
        "missing": run.missing,
    }


def _headline(run: RunSummary, name: str, text: str) -> dict[str, Any]:
    """A big number and the bars that compare it with the baselines."""
    found = [("this run", run.score(name), "run")]
    found += [(label, run.baseline(key, name), key) for key, label in _BASELINES.items()]
    bars = [(label, value, kind) for label, value, kind in found if value is not None]
    top = max([value for _, value, _ in bars], default=0.0) or 1.0
    return {
        "name": name,
        "text": text,
        "value": run.score(name),
        "bars": [(label, value, 100 * max(value, 0.0) / top, kind) for label, value, kind in bars],
    }


def _commands(run: RunSummary) -> list[str]:
    """Shell commands that repeat the run; its folder is named by its last two parts, as in work_dirs/<name>."""
    folder = run.folder.resolve()
    name = shlex.quote(f"{folder.parent.name}/{folder.name}")
    config = shlex.quote(f"{folder.parent.name}/{folder.name}/config.json")
    recorded = run.env.get("command") or run.summary.get("command")
    lines = [str(recorded)] if recorded else []
    lines += [f"perception train {config}"] if run.config and not recorded else []
    return [*lines, f"perception test {name}", f"perception report {name}"]


def _costs(run: RunSummary) -> list[tuple[str, str]]:
    seconds = run.summary.get("seconds")
    rows = []
    if isinstance(seconds, dict):
        order = [
            *(name for name in _PHASES if name in seconds),
            *(name for name in seconds if name not in _PHASES),
        ]
        rows = [(name, duration(value)) for name in order if (value := number(seconds[name])) is not None]
        total = sum(value for name in seconds if (value := number(seconds[name])) is not None)
        rows.append(("in all", duration(total)))
    speed, memory = number(run.summary.get("samples_per_second")), number(run.summary.get("peak_memory_mb"))
    if speed is not None:
        rows.append(("training speed", f"{speed:.2f} samples/s"))
    if memory is not None:
        rows.append(("peak memory", f"{memory:,.0f} MB"))
    if run.summary and not rows:
        run.missing.append("summary.json holds no times, speed or memory.")
    return rows


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(7.25), duration(754), duration(7322)
        ('7.2 s', '12 min 34 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _has_balance(run: RunSummary) -> bool:
    log = run.folder / "log.jsonl"
    try:
        return log.exists() and bool(BalanceRecords.from_log(iter_json_lines(log)))
    except ValueError:
        return False  # the curves say what is wrong with the log


def _curve(run: RunSummary, draw: Callable[[str | Path, str | Path], Path], lost: str) -> str:
    log = run.folder / "log.jsonl"
    if not log.exists():
        run.missing.append(f"{lost}: there is no log.jsonl.")
        return ""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            picture = draw(log, Path(scratch) / "curve.png")
        except ValueError as error:
            reason = str(error).replace(str(log), "log.jsonl")
            run.missing.append(f"{lost}: {reason}")
            return ""
        return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _inline_picture(path: Path, missing: list[str]) -> str:
    image = cv2.imdecode(np.frombuffer(path.read_bytes() or b"\0", np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        missing.append(f"A picture cannot be read: {path.name}.")
        return ""
    if image.shape[1] > _MAX_WIDTH:
        height = round(image.shape[0] * _MAX_WIDTH / image.shape[1])
        image = cv2.resize(image, (_MAX_WIDTH, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _rows(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as flat rows."""
    rows = []
    for key, value in mapping.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append(
                (f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            )
    return rows


def _template() -> str:
    return (resources.files("perception.visualization") / "templates" / "report.html.j2").read_text(
        encoding="utf-8"
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment
