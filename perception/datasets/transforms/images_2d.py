"""One image with 2D labels: decoding, the segmentation mask, resizing."""

from collections.abc import Sequence
from typing import Any, Literal

from perception.datasets._image_files import INTERPOLATIONS, decode_for, read_content, resize_image
from perception.datasets.seg_masks import read_mask
from perception.datasets.transforms._base import Transform
from perception.datasets.transforms._labels_2d import move_labels, resize_mask, scale_boxes
from perception.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage2D(Transform):
    """Decode the image; adds `img` (H, W, 3) uint8 BGR, `scale_factor` (w, h) and `flip`.

    Args:
        target_size: (width, height) that a later `ResizeImage` makes, or the largest of them. Where a JPEG is at least
            twice as large it is decoded at 1/2, 1/4 or 1/8, never below this size, and the boxes are scaled with it.
            None decodes in full.

    Raises:
        DataError: the image is missing, damaged, or not of the size that its labels belong to.
        ValueError: the size is not two positive numbers.
    """

    def __init__(self, *, target_size: tuple[int, int] | None = None) -> None:
        self._target_size = None if target_size is None else _checked_size("target_size", target_size)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Decode."""
        path, token = results["img_path"], results["frame_name"]
        height, width = results["ori_shape"]
        image = decode_for(
            read_content(path, sample_token=token),
            self._target_size,
            path=path,
            expected_size=(width, height),
            sample_token=token,
        )
        factor = (1 / image.reduction, 1 / image.reduction)
        moved = move_labels(results, boxes=lambda boxes: scale_boxes(boxes, factor))
        return {**results, **moved, "img": image.pixels, "scale_factor": factor, "flip": False}


@TRANSFORMS.register_module()
class LoadSegMask(Transform):
    """Read the masks that the sample names: `seg_path` → `gt_sem_seg`, `pseudo_seg_path` → `pseudo_sem_seg`.

    A sample without either passes as it is. Masks stay at full size until `ResizeImage`.

    Raises:
        DataError: a mask is missing, damaged, of another size than its image, not of 8 bits and one channel, or holds
            an id that is neither one of the 19 classes nor 255.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read."""
        names = {"gt_sem_seg": "seg_path", "pseudo_sem_seg": "pseudo_seg_path"}
        height, width = results["ori_shape"]
        masks = {
            key: read_mask(results[source], size=(width, height), frame=results["frame_name"])
            for key, source in names.items()
            if results.get(source) is not None
        }
        return {**results, **masks}


@TRANSFORMS.register_module()
class ResizeImage(Transform):
    """Resize the image, its boxes and its masks: to one size, or to a short edge drawn at random.

    *Source*: FCOS-RT trains at short edges 256…608 in steps of 32 with the long edge at most 900, and tests at 512 and
    736. The rule is detectron2's: the short edge is met unless the long one would grow too long, then that is met.

    Args:
        size: (width, height) of the result.
        keep_ratio: with `size`: the largest image of the same proportions that fits into it.
        short_edges: short edges to draw from, each equally likely; proportions are kept.
        max_long_edge: with `short_edges`: limit of the long edge; None: no limit.
        interpolation: of the image: "bilinear", or "area", which does not alias below one half. Masks always take the
            nearest pixel.

    Raises:
        ValueError: not exactly one of `size` and `short_edges`, or an option that does not go with it or is not
            positive.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        keep_ratio: bool = False,
        short_edges: Sequence[int] | None = None,
        max_long_edge: int | None = None,
        interpolation: Literal["bilinear", "area"] = "bilinear",
    ) -> None:
        if (size is None) == (short_edges is None):
            raise ValueError(
                f"give either size=(width, height) or short_edges, got size={size} and short_edges={short_edges}."
            )
        if size is not None and max_long_edge is not None:
            raise ValueError("max_long_edge goes with short_edges; with size use keep_ratio=True.")
        if short_edges is not None and keep_ratio:
            raise ValueError("keep_ratio goes with size; short_edges always keep the proportions.")
        lengths = [*(short_edges or ()), *(() if max_long_edge is None else (max_long_edge,))]
        if short_edges is not None and (not len(short_edges) or min(lengths) < 1):
            raise ValueError(
                f"short_edges and max_long_edge must be positive, got {short_edges} and {max_long_edge}."
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {interpolation!r}.")
        self._size = None if size is None else _checked_size("size", size)
        self._keep_ratio = keep_ratio
        self._short_edges = None if short_edges is None else tuple(int(edge) for edge in short_edges)
        self._max_long_edge = max_long_edge
        self.interpolation = interpolation

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize."""
        height, width = results["img"].shape[:2]
        new_width, new_height = size = self._new_size(results)
        factor = (new_width / width, new_height / height)
        moved = move_labels(
            results,
            boxes=lambda boxes: scale_boxes(boxes, factor),
            masks=lambda mask: resize_mask(mask, size),
        )
        before = results["scale_factor"]
        return {
            **results,
            **moved,
            "img": resize_image(results["img"], size, self.interpolation),
            "scale_factor": (before[0] * factor[0], before[1] * factor[1]),
        }

    def _new_size(self, results: dict[str, Any]) -> tuple[int, int]:
        # From the file's proportions: an image decoded at 1/2 may be half a pixel wider than half.
        height, width = results["ori_shape"]
        short = None
        if self._short_edges is not None:
            short = self._short_edges[int(results["rng"].integers(len(self._short_edges)))]
        return self._scaled(width, height, short)

    def result_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the result for a file's image of this size, where chance has no part in it.

        Raises:
            ValueError: there are several short edges to draw from.
        """
        if self._short_edges is not None and len(self._short_edges) > 1:
            raise ValueError(
                f"ResizeImage draws from short_edges={self._short_edges}, so there is no one size; give it one of them."
            )
        return self._scaled(width, height, self._short_edges[0] if self._short_edges else None)

    def _scaled(self, width: int, height: int, short: int | None) -> tuple[int, int]:
        if short is not None:
            scale = short / min(height, width)
            if self._max_long_edge is not None:
                scale = min(scale, self._max_long_edge / max(height, width))
        elif self._size is None:
            raise RuntimeError("neither a size nor short edges")
        elif self._keep_ratio:
            scale = min(self._size[0] / width, self._size[1] / height)
        else:
            return self._size
        return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def _checked_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} is (width, height) with positive numbers, got {size}.")
    return (int(size[0]), int(size[1]))
