"""Which samples of a split are worth a picture: the best, the worst, and those that two runs differ in most."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.utils import read_json
from perception.visualization.run_summary import number

SAMPLES_FILE = "metrics_per_sample.json"
PICTURE_FOLDERS = ("pictures/ranked", "pictures")
"""Where a run's pictures are looked for; each holds a predictions.json that says which is which."""

SampleScores = Mapping[str, Mapping[str, float]]
"""Sample token → score's name → value."""


@dataclass(frozen=True)
class RankedSample:
    """A sample, and why it is shown.

    Attributes:
        kind: "best", "worst", "gained" or "lost".
        token: the sample's.
    """

    kind: str
    token: str


def read_sample_scores(folder: str | Path) -> dict[str, dict[str, float]]:
    """What `perception test` wrote of single samples into a run folder; empty if it did not, or it is damaged."""
    samples = _read(Path(folder) / SAMPLES_FILE).get("samples")
    found: dict[str, dict[str, float]] = {}
    for token, scores in samples.items() if isinstance(samples, dict) else ():
        if isinstance(scores, dict):
            found[token] = {
                name: value for name, given in scores.items() if (value := number(given)) is not None
            }
    return {token: scores for token, scores in found.items() if scores}


def rank_samples(
    scores: SampleScores, others: SampleScores | None = None, *, num: int = 1
) -> list[RankedSample]:
    """The samples with the highest and lowest mean of their scores, and those that another run changed most.

    Only samples with the commonest kinds of scores count, since the mean of a frame that has only masks says little
    beside that of one that has only boxes.

    Args:
        scores: of the run, or of the run that is compared with.
        others: of the other run: "gained" are samples in which it is better, "lost" those in which it is worse.
        num: samples of each kind.

    Example:
        >>> before = {"a": {"mIoU": 0.1}, "b": {"mIoU": 0.5}, "c": {"mIoU": 0.4}}
        >>> after = {"a": {"mIoU": 0.2}, "b": {"mIoU": 0.6}, "c": {"mIoU": 0.1}}
        >>> [(ranked.kind, ranked.token) for ranked in rank_samples(before, after)]
        [('best', 'b'), ('worst', 'a'), ('gained', 'a'), ('lost', 'c')]
    """
    means = _means(scores)
    order = sorted(means, key=lambda token: (means[token], token))
    found = [RankedSample("best", token) for token in order[::-1][:num]]
    found += [RankedSample("worst", token) for token in order[:num] if len(order) > num]
    after = _means(others or {})
    changes = {token: after[token] - means[token] for token in order if token in after}
    by_change = sorted(changes, key=lambda token: (changes[token], token))
    found += [RankedSample("gained", token) for token in by_change[::-1][:num] if changes[token] > 0]
    found += [RankedSample("lost", token) for token in by_change[:num] if changes[token] < 0]
    return found


def choose_pair(all_scores: Sequence[SampleScores], first: int = 0) -> tuple[int, int | None] | None:
    """Which runs' samples are shown: the reference, or the first that has scores, and the best other one.

    Args:
        all_scores: per run; empty where a run has none.
        first: number of the reference.

    Returns:
        Two numbers, the second None where there is no other; None if no run has scores.

    Example:
        >>> choose_pair([{}, {"a": {"mIoU": 0.1}}, {"a": {"mIoU": 0.2}}, {"a": {"mIoU": 0.3}}])
        (1, 3)
    """
    known = [index for index, scores in enumerate(all_scores) if scores]
    if not known:
        return None
    first = first if first in known else known[0]
    kinds = _commonest(all_scores[first])
    others = [index for index in known if index != first and _commonest(all_scores[index]) == kinds]
    means = {index: list(_means(all_scores[index]).values()) for index in others}
    best = max(others, key=lambda index: (sum(means[index]) / len(means[index]), -index), default=None)
    return first, best


def find_pictures(folder: str | Path) -> dict[str, Path]:
    """Sample token → its picture, as `predictions.json` beside the pictures has it."""
    found: dict[str, Path] = {}
    for name in PICTURE_FOLDERS:
        pictures = _read(Path(folder) / name / "predictions.json").get("pictures")
        for token, file in pictures.items() if isinstance(pictures, dict) else ():
            path = Path(folder) / name / Path(str(file)).name
            if path.is_file():
                found.setdefault(token, path)
                found.setdefault(Path(token).stem, path)  # images: scores go by the stem
    return found


def _means(scores: SampleScores) -> dict[str, float]:
    names = _commonest(scores)
    return {
        token: sum(values.values()) / len(values)
        for token, values in scores.items()
        if values and frozenset(values) == names
    }


def _commonest(scores: SampleScores) -> frozenset[str]:
    counts = Counter(frozenset(values) for values in scores.values())
    return max(counts, key=lambda names: (counts[names], len(names), sorted(names)), default=frozenset())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path) if path.is_file() else {}
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
