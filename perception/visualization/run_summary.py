"""What a run folder tells, read once and put in order for the report. Missing pieces are listed, not guessed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.structures import CLASS_NAMES, FILLED_MAP_CLASSES, MAP_CLASSES
from perception.utils import DataError, read_json

TP_ERRORS = {
    "ATE": "translation, m",
    "ASE": "scale, 1 − IoU",
    "AOE": "orientation, rad",
    "AVE": "velocity, m/s",
    "AAE": "attribute, 1 − accuracy",
}
"""True-positive errors and their units."""

NO_PICTURES = "There are no pictures of predictions (pictures/ is empty or absent)."
"""Said of a folder without any; the report leaves it out where it shows others."""

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FILES = {
    "summary": "the demo's result (NDS, mIoU, times)",
    "metrics": "the scores per class",
    "config": "the resolved configuration",
    "env": "the environment",
}


@dataclass
class RunSummary:
    """Content of a run folder.

    Args:
        folder: the run folder.
        summary: `summary.json`.
        metrics: `metrics.json`, flat: NDS, mAP, "AP/car", "IoU/divider", ...
        config: `config.json`.
        env: `env.json`.
        pictures: existing pictures, in order.
        missing: one sentence per absent piece.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: str | Path) -> "RunSummary":
        """Read a run folder.

        Raises:
            DataError: the folder does not exist, holds nothing of a run, or one of its files is not a JSON
            object.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError("there is no such run folder", path=folder)
        run = cls(folder=folder)
        for name, what in _FILES.items():
            content = _read_object(folder / f"{name}.json")
            if content is None:
                run.missing.append(f"{name}.json is missing: {what}.")
            else:
                setattr(run, name, content)
        if len(run.missing) == len(_FILES) and not (folder / "log.jsonl").exists():
            raise DataError(
                "this is no run folder: it holds none of summary.json, metrics.json, config.json, "
                "env.json, log.jsonl",
                path=folder,
            )
        run.metrics = _innermost(run.metrics)
        run._find_pictures()
        return run

    def score(self, name: str) -> float | None:
        """A score, from the summary if it is there, else from the metrics."""
        return number(self.summary.get(name, self.metrics.get(name)))

    def baseline(self, which: str, name: str) -> float | None:
        """A score of the `untrained` or `constant` predictor."""
        values = self.summary.get(which)
        return number(values.get(name)) if isinstance(values, Mapping) else None

    def class_rows(self) -> list[tuple[str, dict[str, float | None]]]:
        """Per detection class: AP and the five errors (None where undefined); empty without per-class scores."""
        names = [key.removeprefix("AP/") for key in self.metrics if key.startswith("AP/")]
        names.sort(key=lambda name: CLASS_NAMES.index(name) if name in CLASS_NAMES else len(CLASS_NAMES))
        columns = ("AP", *TP_ERRORS)
        return [
            (name, {column: number(self.metrics.get(f"{column}/{name}")) for column in columns})
            for name in names
        ]

    def map_rows(self) -> list[tuple[str, float | None]]:
        """Per map class, or class of an image's segmentation: IoU; a map class without one has None."""
        found = {
            key.removeprefix("IoU/"): number(value)
            for key, value in self.metrics.items()
            if key.startswith("IoU/")
        }
        if self.is_segmentation():
            return list(found.items())
        ours = FILLED_MAP_CLASSES if FILLED_MAP_CLASSES[-1] in found else MAP_CLASSES
        names = [*ours[1:], *(name for name in found if name not in ours)]
        return [(name, found.get(name)) for name in names] if found else []

    def is_segmentation(self) -> bool:
        """Whether the IoU is that of images, not of a map in the bird's-eye view."""
        return "fIoU" in self.metrics

    def mean_errors(self) -> dict[str, float | None]:
        """The five mean true-positive errors."""
        return {name: self.score(f"m{name}") for name in TP_ERRORS}

    def _find_pictures(self) -> None:
        listed = self.summary.get("pictures")
        for entry in listed if isinstance(listed, list) else []:
            candidates = (self.folder / str(entry), self.folder / "pictures" / Path(str(entry)).name)
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                self.missing.append(f"A picture named in summary.json is missing: {entry}.")
            elif path.suffix.lower() in _PICTURE_SUFFIXES:
                self.pictures.append(path)
        if not self.pictures and (self.folder / "pictures").is_dir():
            files = sorted((self.folder / "pictures").iterdir())
            self.pictures = [path for path in files if path.suffix.lower() in _PICTURE_SUFFIXES]
        if not self.pictures:
            self.missing.append(NO_PICTURES)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except json.JSONDecodeError as error:
        raise DataError(f"this is not JSON ({error})", path=path) from error
    if isinstance(content, list) and content and isinstance(content[-1], dict):
        content = content[-1]  # a list of evaluations: the last one counts
    if not isinstance(content, dict):
        raise DataError(f"expected a JSON object, found {type(content).__name__}", path=path)
    return content


def _innermost(metrics: dict[str, Any]) -> dict[str, Any]:
    inner = metrics.get("metrics")
    return inner if isinstance(inner, dict) else metrics
