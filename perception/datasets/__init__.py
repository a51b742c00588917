"""nuScenes on disk → items of a temporal bird's-eye-view dataset: index, checks, transforms, map targets."""

from perception.datasets._packed import read_first_sample
from perception.datasets._tables import Problem
from perception.datasets.database_check import verify
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
    "prepare",
    "read_first_sample",
    "verify",
]
