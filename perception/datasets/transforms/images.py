"""Images of all frames and cameras: decoding and resizing, with the change of `lidar2img` that belongs to it."""

from typing import Any, Literal

import numpy as np

from perception.datasets._cache_files import CacheSettings
from perception.datasets._image_files import (
    INTERPOLATIONS,
    DecodedImage,
    decode_for,
    read_content,
    resize_image,
)
from perception.datasets.image_cache import ImageCache
from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS
from perception.structures import CAMERA_NAMES, resize_matrix
from perception.utils import DataError


@TRANSFORMS.register_module()
class LoadMultiViewImages(Transform):
    """Decode the six images of every frame.

    Adds `img` (list of N arrays (H, W, 3) uint8 BGR, in the order of `CAMERA_NAMES`) to each frame.

    Args:
        target_size: (width, height) that a later `ResizeMultiView` makes. Where a JPEG is at least twice as large it is
            decoded at 1/2, 1/4 or 1/8, never below this size, and `lidar2img` is scaled with it. None decodes in full.
        cache_dir: read copies of `target_size` from the folder `<cache_dir>/<width>x<height>`, which
            `perception data prepare ROOT --cache WIDTHxHEIGHT` makes, instead of the originals; "auto" is
            `<data_root>/perception_index/image_cache`. None reads the originals.

    Raises:
        DataError: an image is missing, damaged, or not of the size that its calibration belongs to; there is no such
            cache, or a copy is missing, damaged or stale.
        ValueError: `cache_dir` without `target_size`.
    """

    def __init__(self, *, target_size: tuple[int, int] | None = None, cache_dir: str | None = None) -> None:
        if cache_dir is not None and target_size is None:
            raise ValueError(f"cache_dir={cache_dir!r} needs target_size, the size of the cached images.")
        self._target_size = None if target_size is None else _checked_size(target_size)
        self._cache_dir = cache_dir
        self._caches: dict[str, ImageCache] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Decode; a frame that occurs twice is read once."""
        cache = None if self._cache_dir is None else self._cache(results["data_root"])
        loaded: dict[str, dict[str, Any]] = {}
        for frame in results["frames"]:
            if frame["sample_token"] not in loaded:
                loaded[frame["sample_token"]] = self._load(frame, cache)
        return {
            **results,
            "frames": [{**frame, **loaded[frame["sample_token"]]} for frame in results["frames"]],
        }

    def _load(self, frame: dict[str, Any], cache: ImageCache | None) -> dict[str, Any]:
        images, matrices = [], []
        for camera, lidar2img in zip(CAMERA_NAMES, frame["lidar2img"], strict=True):
            image = self._load_image(frame, camera, cache)
            images.append(image.pixels)
            matrices.append(image.scale(lidar2img))
        made_by = None if cache is None else cache.settings
        return {"img": images, "lidar2img": np.stack(matrices), "cached_by": made_by}

    def _load_image(self, frame: dict[str, Any], camera: str, cache: ImageCache | None) -> DecodedImage:
        path, size, token = frame["img_paths"][camera], frame["img_sizes"][camera], frame["sample_token"]
        if cache is None:
            content = read_content(path, sample_token=token)
            return decode_for(content, self._target_size, path=path, expected_size=size, sample_token=token)
        image = cache.read(path, sample_token=token)
        if size is not None and image.source_size != tuple(size):
            raise DataError(
                f"the cached image was made from one of {image.source_size[0]}×{image.source_size[1]}, but the index "
                f"says {size[0]}×{size[1]}; its calibration would be wrong. Build the index and the cache again.",
                sample_token=token,
                path=path,
            )
        return image

    def _cache(self, data_root: str) -> ImageCache:
        if self._cache_dir is None or self._target_size is None:
            raise RuntimeError("there is no cache to open")
        if data_root not in self._caches:
            self._caches[data_root] = ImageCache(
                cache_dir=self._cache_dir, data_root=data_root, size=self._target_size
            )
        return self._caches[data_root]


@TRANSFORMS.register_module()
class ResizeMultiView(Transform):
    """Resize all images and scale `lidar2img` with them.

    Args:
        size: (width, height) of the result; the aspect ratio may change, each axis has its own factor.
        scale: factor instead of a size; the result is rounded to whole pixels.
        interpolation: "bilinear", as upstream, or "area", which does not alias below one half.

    Raises:
        ValueError: not exactly one of `size` and `scale`, or one that is not positive.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        interpolation: Literal["bilinear", "area"] = "bilinear",
    ) -> None:
        if (size is None) == (scale is None):
            raise ValueError(f"give either size=(width, height) or scale, got size={size} and scale={scale}.")
        if scale is not None and scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {interpolation!r}.")
        self._size = None if size is None else _checked_size(size)
        self._scale = scale
        self.interpolation = interpolation

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize."""
        return {**results, "frames": [self._resize_frame(frame) for frame in results["frames"]]}

    def result_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the result for an image of this size."""
        if self._size is not None:
            return self._size
        scale = self._scale or 1.0
        return round(width * scale), round(height * scale)

    def _resize_frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        cached_by = frame.get("cached_by")
        if cached_by is not None:
            self._check_cached(cached_by)
        images, matrices = [], []
        for image, lidar2img in zip(frame["img"], frame["lidar2img"], strict=True):
            height, width = image.shape[:2]
            new_width, new_height = self.result_size(width, height)
            images.append(resize_image(image, (new_width, new_height), self.interpolation))
            matrices.append(resize_matrix(new_width / width, new_height / height) @ lidar2img)
        return {**frame, "img": images, "lidar2img": np.stack(matrices)}

    def _check_cached(self, settings: CacheSettings) -> None:
        """Images from a cache are resized already, and must have been by this step's rule."""
        if (settings.size, settings.interpolation) != (self._size, self.interpolation):
            wanted = f"scale={self._scale}" if self._size is None else f"size={self._size}"
            raise ValueError(
                f"the cached images were made with size={settings.size} and interpolation={settings.interpolation!r}, "
                f"but ResizeMultiView wants {wanted} and interpolation={self.interpolation!r}; set both alike, or "
                "LoadMultiViewImages' cache_dir=null."
            )


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"an image size is (width, height) with positive numbers, got {size}.")
    return (int(size[0]), int(size[1]))
