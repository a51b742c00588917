"""Pictures of the best, the worst and the most changed samples, and whatever else lies in the runs' folders."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from perception.visualization.run_groups import Run, RunGroup
from perception.visualization.sample_ranking import (
    SAMPLES_FILE,
    RankedSample,
    choose_pair,
    find_pictures,
    rank_samples,
    read_sample_scores,
)

_MAX_WIDTH = 1700
_JPEG_QUALITY = 84
_TITLES = {
    "best": "best sample",
    "worst": "worst sample",
    "gained": "most gained",
    "lost": "most lost",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An inlined picture: its data URI, size in pixels, and words."""

    data: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A ranked sample: why it is shown, its scores in words, and its picture in each of the runs that are shown."""

    title: str
    text: str
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The runs whose samples are shown, and which samples these are.

    Attributes:
        runs: label and run; the first is the one compared with.
        scores: each run's, token → name → value.
        ranked: the samples.
    """

    runs: list[tuple[str, Run]]
    scores: list[dict[str, dict[str, float]]]
    ranked: list[RankedSample]

    def tokens(self) -> list[str]:
        """The samples to draw, each once."""
        return list(dict.fromkeys(sample.token for sample in self.ranked))


def choose_samples(
    groups: Sequence[RunGroup], reference: RunGroup | None = None, *, num: int = 1
) -> Choice | None:
    """The samples worth a picture, of the reference (or the first run with scores of samples) and the best other run.

    None if no run has `metrics_per_sample.json`.
    """
    candidates = [(group, read_sample_scores(group.first.summary.folder)) for group in groups]
    first = next((index for index, (group, _) in enumerate(candidates) if group is reference), 0)
    pair = choose_pair([scores for _, scores in candidates], first)
    if pair is None:
        return None
    chosen = [candidates[index] for index in pair if index is not None]
    scores = [scores for _, scores in chosen]
    ranked = rank_samples(scores[0], scores[1] if len(scores) > 1 else None, num=num)
    runs = [(group.label, group.first) for group, _ in chosen]
    return Choice(runs=runs, scores=scores, ranked=ranked)


def shown_samples(choice: Choice | None, missing: list[str]) -> list[Shown]:
    """The chosen samples with the pictures that are there.

    Args:
        choice: from `choose_samples`.
        missing: gets a sentence where scores or pictures are missing.
    """
    if choice is None:
        missing.append(
            f"No run holds {SAMPLES_FILE}, which names the best and the worst samples; `perception test RUN` writes it."
        )
        return []
    pictures = [find_pictures(run.summary.folder) for _, run in choice.runs]
    found, absent = [], 0
    for token in choice.tokens():
        reasons = [sample for sample in choice.ranked if sample.token == token]
        title = ", ".join(_TITLES[sample.kind] for sample in reasons).capitalize()
        inlined = []
        for (label, _), known, scores in zip(choice.runs, pictures, choice.scores, strict=True):
            path = known.get(token)
            absent += path is None
            caption = f"{label}: {scores_text(scores.get(token, {}))}"
            alt = f"{label}, {title.lower()}: pictures of the cameras with boxes, ground truth and prediction"
            picture = None if path is None else inline(path, alt=alt, caption=caption, missing=missing)
            inlined += [] if picture is None else [picture]
        if inlined:
            text = "; ".join(_reason(sample, choice) for sample in reasons)
            found.append(Shown(title=title, text=text, pictures=inlined))
    if absent:
        missing.append(
            "Some pictures of the best, worst and most changed samples are not there; the same command with --draw 1 "
            "draws them."
        )
    return found


def other_pictures(groups: Sequence[RunGroup], missing: list[str], *, has_ranked: bool) -> list[Picture]:
    """The pictures that a run's summary names, or all in its pictures/; of several runs only where no others are."""
    found = []
    for group in groups if len(groups) == 1 or not has_ranked else ():
        for path in group.first.summary.pictures:
            words = path.stem.replace("_", " ")
            caption = words if len(groups) == 1 else f"{group.label}: {words}"
            picture = inline(path, alt=f"picture of {caption}", caption=caption, missing=missing)
            found += [] if picture is None else [picture]
    return found


def inline(path: Path, *, alt: str, caption: str, missing: list[str]) -> Picture | None:
    """A picture as a data URI, not wider than it is useful; None with a note if it cannot be read."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes() or b"\0", np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        missing.append(f"A picture cannot be read: {path.name}.")
        return None
    if image.shape[1] > _MAX_WIDTH:
        height = round(image.shape[0] * _MAX_WIDTH / image.shape[1])
        image = cv2.resize(image, (_MAX_WIDTH, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    data = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
    return Picture(data=data, width=image.shape[1], height=image.shape[0], alt=alt, caption=caption)


def scores_text(scores: dict[str, float]) -> str:
    """A sample's scores in words.

    Example:
        >>> scores_text({"mAP": 0.25, "mIoU": 0.5})
        'mAP 0.250, mIoU 0.500'
    """
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) or "no score"


def _reason(sample: RankedSample, choice: Choice) -> str:
    label = choice.runs[0][0]
    if sample.kind in ("best", "worst"):
        extreme = "highest" if sample.kind == "best" else "lowest"
        return f"the {extreme} mean of {label}'s scores of single samples"
    way = "risen" if sample.kind == "gained" else "fallen"
    return f"scores have {way} most from {label} to {choice.runs[1][0]}"
