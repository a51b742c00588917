"""Data sets on disk → items for training: index, checks, transforms, map targets."""

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
    CropImage,
    CropTopMultiView,
    LoadBEVMap,
    LoadImage2D,
    LoadMultiViewImages,
    LoadSegMask,
    ObjectRangeFilter,
    PackBEVInputs,
    PackImageInputs,
    PhotometricDistortion,
    RandomFlipImage,
    ResizeImage,
    ResizeMultiView,
)
from perception.datasets.vector_map import NuScenesVectorMap

__all__ = [
    "DETECTION_NAMES",
    "BEVRandomFlip",
    "BEVRandomRotate",
    "CacheReport",
    "CropImage",
    "CropTopMultiView",
    "LoadBEVMap",
    "LoadImage2D",
    "LoadMultiViewImages",
    "LoadSegMask",
    "NuScenesBEVDataset",
    "NuScenesVectorMap",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "PackImageInputs",
    "PhotometricDistortion",
    "Problem",
    "RandomFlipImage",
    "ResizeImage",
    "ResizeMultiView",
    "image_cache_problems",
    "prepare",
    "prepare_image_cache",
    "read_first_sample",
    "verify",
]
