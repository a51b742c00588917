"""nuScenes and BDD100K on disk → items for training: indexes, checks, transforms, map targets."""

from perception.datasets._packed import read_first_sample, read_metainfo
from perception.datasets._tables import Problem
from perception.datasets.bdd100k_dataset import BDD100KDataset
from perception.datasets.bdd100k_index import prepare_bdd100k, verify_bdd100k
from perception.datasets.database_check import verify
from perception.datasets.image_cache_check import image_cache_problems
from perception.datasets.image_cache_writer import CacheReport, prepare_image_cache
from perception.datasets.index_builder import DETECTION_NAMES, prepare
from perception.datasets.nuscenes_dataset import NuScenesBEVDataset
from perception.datasets.raw_pipeline import ImageSteps, raw_pipeline
from perception.datasets.seg_masks import read_mask
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
from perception.structures.scalabel import FrameBoxes, read_boxes

__all__ = [
    "DETECTION_NAMES",
    "BDD100KDataset",
    "BEVRandomFlip",
    "BEVRandomRotate",
    "CacheReport",
    "CropImage",
    "CropTopMultiView",
    "FrameBoxes",
    "ImageSteps",
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
    "prepare_bdd100k",
    "prepare_image_cache",
    "raw_pipeline",
    "read_boxes",
    "read_first_sample",
    "read_mask",
    "read_metainfo",
    "verify",
    "verify_bdd100k",
]
