"""The few scores that a page begins with, each with bars of all runs and of the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from perception.utils.seed_statistics import SeedMean, over_seeds
from perception.visualization.comparability import same_data
from perception.visualization.report.scores import decimals_of
from perception.visualization.run_groups import RunGroup, numbers_of

BEV = {
    "NDS": "nuScenes detection score",
    "mAP": "mean average precision",
    "mIoU": "map IoU, mean over the map's classes",
}
IMAGES = {
    "AP": "average precision of boxes, mean over IoU 0.50 to 0.95",
    "AP50": "average precision of boxes at IoU 0.5",
    "mIoU": "IoU of segmentation, mean over the classes of the ground truth",
}
BASELINES = {"untrained": "untrained model", "constant": "constant predictor"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: shares are per cent of the track's width.

    Attributes:
        label: of the run or baseline.
        colour: a CSS colour.
        text: the mean over seeds.
        share: the mean's.
        whisker: from and to, one standard error around the mean; None of a single seed.
        seeds: each seed's, where there are several.
    """

    label: str
    colour: str
    text: str
    share: float
    whisker: tuple[float, float] | None = None
    seeds: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A score, what it is, its value in the only run ("–" with several), and the bars."""

    name: str
    text: str
    value: str
    bars: list[Bar]


def is_image(groups: Sequence[RunGroup]) -> bool:
    """Whether the scores are those of boxes and masks in images."""
    found = {name for group in groups for name in group.metrics}
    summaries = {name for group in groups for name in group.first.summary.summary}
    return bool({"AP", "fIoU"} & (found | summaries)) and "NDS" not in found


def headlines(groups: Sequence[RunGroup], reference: RunGroup) -> list[Headline]:
    """The page's first scores; one that nobody has is there without a value.

    Args:
        groups: the methods.
        reference: those on other data than this one are marked.
    """
    texts = IMAGES if is_image(groups) else BEV
    return [_headline(groups, reference, name, text) for name, text in texts.items()]


def _headline(groups: Sequence[RunGroup], reference: RunGroup, name: str, text: str) -> Headline:
    rows: list[tuple[str, str, SeedMean, list[float]]] = []
    for group in groups:
        value = group.over_seeds(name) or _from_summary(group, name)
        if value is not None:
            label = "this run" if len(groups) == 1 and len(group.runs) == 1 else group.label
            label += "" if same_data(group, reference) else " (other data)"
            seeds = [numbers_of(run)[name] for run in group.runs] if value.num > 1 else []
            rows.append((label, f"var(--c{group.colour % 10})", value, seeds))
    for key, label in BASELINES.items():
        found = [group.first.summary.baseline(key, name) for group in groups]
        known = [value for value in found if value is not None]
        if known:
            rows.append((label, "var(--track-fill)", over_seeds(known[:1]), []))
    top = (
        max((max([value.mean + (value.error or 0.0), *seeds]) for *_, value, seeds in rows), default=0.0)
        or 1.0
    )
    decimals = decimals_of([value for *_, value, _ in rows])
    bars = [_bar(label, colour, value, seeds, top, decimals) for label, colour, value, seeds in rows]
    mean = (groups[0].over_seeds(name) or _from_summary(groups[0], name)) if len(groups) == 1 else None
    return Headline(name=name, text=text, value="–" if mean is None else mean_text(mean, decimals), bars=bars)


def mean_text(value: SeedMean, decimals: int) -> str:
    """The mean alone."""
    return f"{value.mean:.{decimals}f}"


def _bar(label: str, colour: str, value: SeedMean, seeds: list[float], top: float, decimals: int) -> Bar:
    def share(number: float) -> float:
        return 100 * min(max(number, 0.0), top) / top

    whisker = None
    if value.error is not None:
        whisker = (share(value.mean - value.error), share(value.mean + value.error))
    return Bar(
        label=label, colour=colour, text=mean_text(value, decimals), share=share(value.mean), whisker=whisker,
        seeds=[share(seed) for seed in seeds],
    )  # fmt: skip


def _from_summary(group: RunGroup, name: str) -> SeedMean | None:
    values = [value for run in group.runs if (value := run.summary.score(name)) is not None]
    return over_seeds(values) if len(values) == len(group.runs) else None
