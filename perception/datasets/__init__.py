"""nuScenes on disk → items of a temporal bird's-eye-view dataset: index, checks, transforms, map targets."""

from perception.datasets._packed import read_first_sample
from perception.datasets._tables import Problem
from perception.datasets.database_check import verify
from perception.datasets.image_cache_check import image_cache_problems
from perception.datasets.image_cache_writer import CacheReport, prepare_image_cache
from perception.datasets.index_builder import DETECTION_NAMES, prepare
from perception.datasets.nuscenes_dataset import NuScenesBEVDataset
from perception.datasets.transforms import (
    BEVRandomFlip,
    BEVRandomRotate,
    CropTopMultiView,
    LoadBEVMap,
    LoadMultiViewImages,
    ObjectRangeFilter,
    PackBEVInputs,
    PhotometricDistortion,
    ResizeMultiView,
)
from perception.datasets.vector_map import NuScenesVectorMap

__all__ = [
    "DETECTION_NAMES",
    "BEVRandomFlip",
    "BEVRandomRotate",
    "CacheReport",
    "CropTopMultiView",
    "LoadBEVMap",
    "LoadMultiViewImages",
    "NuScenesBEVDataset",
    "NuScenesVectorMap",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "PhotometricDistortion",
    "Problem",
    "ResizeMultiView",
    "image_cache_problems",
    "prepare",
    "prepare_image_cache",
    "read_first_sample",
    "verify",
]
