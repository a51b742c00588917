"""Steps of the data pipeline, from file names to the packed item."""

from perception.datasets._image_files import read_image
from perception.datasets.transforms._base import Transform
from perception.datasets.transforms._labels_2d import resize_mask
from perception.datasets.transforms.augment_2d import CropImage, RandomFlipImage
from perception.datasets.transforms.bev_augment import (
    BEVRandomFlip,
    BEVRandomRotate,
    augment_boxes,
    augment_ego_motion,
)
from perception.datasets.transforms.boxes import ObjectRangeFilter
from perception.datasets.transforms.crop import CropTopMultiView
from perception.datasets.transforms.images import LoadMultiViewImages, ResizeMultiView
from perception.datasets.transforms.images_2d import LoadImage2D, LoadSegMask, ResizeImage
from perception.datasets.transforms.map_target import LoadBEVMap
from perception.datasets.transforms.pack import PackBEVInputs
from perception.datasets.transforms.pack_2d import PackImageInputs
from perception.datasets.transforms.photometric import PhotometricDistortion

__all__ = [
    "BEVRandomFlip",
    "BEVRandomRotate",
    "CropImage",
    "CropTopMultiView",
    "LoadBEVMap",
    "LoadImage2D",
    "LoadMultiViewImages",
    "LoadSegMask",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "PackImageInputs",
    "PhotometricDistortion",
    "RandomFlipImage",
    "ResizeImage",
    "ResizeMultiView",
    "Transform",
    "augment_boxes",
    "augment_ego_motion",
    "read_image",
    "resize_mask",
]
