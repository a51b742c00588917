"""The map target of the current sample."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.datasets._map_cache import MapCache
from perception.datasets.transforms._base import Transform
from perception.datasets.vector_map import load_vector_map, map_path
from perception.registry import TRANSFORMS
from perception.structures import FILLED_MAP_CLASSES, MAP_CLASSES, MapGrid
from perception.utils import DataError, get_logger


@TRANSFORMS.register_module()
class LoadBEVMap(Transform):
    """Rasterise the map around the sample; adds `gt_bev_seg`, (rows, columns) uint8.

    Put it behind the BEV augmentations. Unaugmented targets are cached on disk; augmented ones are drawn each time.

    Args:
        grid: pixels of the target, a `MapGrid` or its arguments.
        center: the map lies around the LiDAR, as the BEV features do; or around the ego's origin, 0.94 m behind it on
            nuScenes' car, level and along the ego's heading, as Bin-ze draws it (for weights trained with it).
        filled: fill crossings and drivable area instead of drawing lines, see `NuScenesVectorMap.rasterise`.
        on_missing: what to do with a sample whose map expansion is not there: "error", or "skip" (no target).
        map_root: folder that holds `maps/expansion`; None takes the dataset's root.
        cache_dir: folder of the cache; "auto" is `<data_root>/perception_index/map_cache`, None caches nothing.

    Raises:
        DataError: the map expansion is missing or damaged.
        ValueError: an unknown `center` or `on_missing`.
    """

    def __init__(
        self,
        *,
        grid: MapGrid | Mapping[str, Any],
        center: Literal["lidar", "ego"] = "lidar",
        filled: bool = False,
        on_missing: Literal["error", "skip"] = "error",
        map_root: str | None = None,
        cache_dir: str | None = "auto",
    ) -> None:
        if center not in ("lidar", "ego"):
            raise ValueError(f"center must be 'lidar' or 'ego', got {center!r}.")
        if on_missing not in ("error", "skip"):
            raise ValueError(f"on_missing must be 'error' or 'skip', got {on_missing!r}.")
        if isinstance(grid, Mapping):
            settings: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in grid.items()
                if name != "type"
            }
            grid = MapGrid(**settings)
        self._grid = grid
        self._center = center
        self._filled = filled
        self._on_missing = on_missing
        self._map_root = map_root
        self._cache_dir = cache_dir
        self._caches: dict[str, MapCache] = {}
        self._locations_without_map: set[str] = set()

    @property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the target's values, by the drawing rule."""
        return FILLED_MAP_CLASSES if self._filled else MAP_CLASSES

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the target."""
        root = results["data_root"] if self._map_root is None else self._map_root
        location = results["map_location"]
        if self._on_missing == "skip" and not (location and map_path(root, location).is_file()):
            self._warn_once(root, location)
            return results
        if not location:
            raise DataError(
                "the index has no map_location for this sample; build it with `perception data prepare`, or set "
                "LoadBEVMap(on_missing='skip').",
                sample_token=results["sample_token"],
            )
        ego2global = results["ego2global"]
        map2global = _level_frame(ego2global) if self._center == "ego" else ego2global @ results["lidar2ego"]
        ground_z = float(ego2global[2, 3])
        if np.array_equal(results["bev_aug"], np.eye(4)):
            cache = self._cache(root, location, results["data_root"])
            target = cache.get(
                results["sample_token"],
                np.append(map2global, ground_z),
                lambda: self._draw(root, location, map2global, ground_z),
            )
        else:
            augmented = map2global @ np.linalg.inv(results["bev_aug"])
            target = self._draw(root, location, augmented, ground_z)
        return {**results, "gt_bev_seg": target}

    def _warn_once(self, root: str, location: str) -> None:
        if location in self._locations_without_map:
            return
        self._locations_without_map.add(location)
        reason = f"there is no {map_path(root, location)}" if location else "the index has no map_location"
        get_logger(__name__).warning(
            "samples at %r have no map target, because %s (on_missing='skip')", location, reason
        )

    def _draw(self, root: str, location: str, lidar2global: np.ndarray, ground_z: float) -> np.ndarray:
        vector_map = load_vector_map(str(root), location)
        return vector_map.rasterise(self._grid, lidar2global, filled=self._filled, ground_z=ground_z)

    def _cache(self, root: str, location: str, data_root: str) -> MapCache:
        if location not in self._caches:
            folder = self._cache_dir
            if folder == "auto":
                folder = str(Path(data_root) / "perception_index" / "map_cache")
            self._caches[location] = MapCache(
                folder=folder, grid=self._grid, filled=self._filled, map_file=map_path(root, location)
            )
        return self._caches[location]


def _level_frame(ego2global: np.ndarray) -> np.ndarray:
    """(4, 4): x right, y forward, z up → global, at the ego's origin and without its tilt."""
    heading = math.atan2(ego2global[1, 0], ego2global[0, 0])
    cos, sin = math.cos(heading), math.sin(heading)
    frame = np.eye(4)
    frame[:2, :2] = [[sin, cos], [-cos, sin]]
    frame[:3, 3] = ego2global[:3, 3]
    return frame
