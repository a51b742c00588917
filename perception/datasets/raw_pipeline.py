"""A pipeline cut where an exported graph begins: what decodes stays, what resizes and cuts is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perception.config import ConfigError
from perception.config.image_sizes import step_name
from perception.datasets.transforms import CropTopMultiView, ResizeImage, ResizeMultiView
from perception.registry import TRANSFORMS

_KEPT = (
    "LoadMultiViewImages",
    "LoadBEVMap",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "LoadImage2D",
    "PackImageInputs",
)
_DROPPED = ("LoadSegMask",)  # masks would not fit images that are not resized; a prediction needs none
_RESIZES = ("ResizeMultiView", "ResizeImage")


@dataclass(frozen=True, kw_only=True)
class ImageSteps:
    """What a pipeline does to decoded images and an exported graph does in its place.

    Attributes:
        resize: the resizing step; None: images stay as they are.
        crop_top: rows cut off the top after it.
    """

    resize: ResizeMultiView | ResizeImage | None
    crop_top: int

    @property
    def interpolation(self) -> str:
        """Of the resizing: "bilinear" or "area"."""
        return "bilinear" if self.resize is None else self.resize.interpolation

    def resized(self, source: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the resizing, before the cut, of an image of the size `source` (width, height)."""
        return source if self.resize is None else self.resize.result_size(*source)


def raw_pipeline(dataset: Mapping[str, Any]) -> tuple[dict[str, Any], ImageSteps]:
    """Split an evaluation data set's config at the point where an exported graph begins.

    Args:
        dataset: config of a data set of single frames, its pipeline as of the test loader.

    Returns:
        The config whose items hold images as they were decoded, BGR, with the `lidar2img` of these, and no masks of
        images; and what was taken out.

    Raises:
        ConfigError: the pipeline has a step that neither decodes, resizes nor cuts.

    Example:
        >>> load, pack = {"type": "LoadImage2D"}, {"type": "PackImageInputs"}
        >>> config = {"pipeline": [load, {"type": "ResizeImage", "size": (64, 36)}, pack]}
        >>> raw, steps = raw_pipeline(config)
        >>> [step["type"] for step in raw["pipeline"]], steps.resized((1280, 720)), steps.crop_top
        (['LoadImage2D', 'PackImageInputs'], (64, 36), 0)
    """
    kept: list[Any] = []
    resize, crop_top = None, 0
    for number, step in enumerate(dataset.get("pipeline") or ()):
        name = step_name(step)
        if name in _RESIZES and resize is None and crop_top == 0:
            resize = TRANSFORMS.build(dict(step))
        elif name == "CropTopMultiView":
            crop: CropTopMultiView = TRANSFORMS.build(dict(step))
            crop_top += crop.rows
        elif name in _KEPT:
            kept.append(step)
        elif name not in _DROPPED:
            raise ConfigError(
                f"pipeline.{number} is {name or step}, which an exported graph does not do to images. Export knows "
                f"pipelines of {', '.join((*_KEPT, *_DROPPED))}, one of {', '.join(_RESIZES)}, then CropTopMultiView."
            )
    return {**dataset, "pipeline": kept}, ImageSteps(resize=resize, crop_top=crop_top)
