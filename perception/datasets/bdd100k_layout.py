"""Where things lie in a BDD100K root, as it is downloaded; relative paths, which pseudo labels share."""

from typing import Literal

from perception.utils import DataError

LabelKind = Literal["det", "seg"]

LABEL_KINDS: tuple[LabelKind, ...] = ("det", "seg")
"""Boxes, and masks of semantic segmentation: what the tasks are called too."""

IMAGE_SETS: dict[LabelKind, str] = {"det": "100k", "seg": "10k"}
"""Kind of label → the image set that it was made for."""

SPLITS = ("train", "val", "test")
INDEX_FOLDER = "perception_index"


def images_folder(kind: LabelKind, split: str) -> str:
    """Images of the set that a kind of label was made for.

    Example:
        >>> images_folder("seg", "val")
        'images/10k/val'
    """
    return f"images/{IMAGE_SETS[kind]}/{split}"


def boxes_file(split: str) -> str:
    """The file of all boxes of a split.

    Example:
        >>> boxes_file("train")
        'labels/det_20/det_train.json'
    """
    return f"labels/det_20/det_{split}.json"


def masks_folder(split: str) -> str:
    """Masks of a split, PNG files of train ids with the names of their images.

    Example:
        >>> masks_folder("train")
        'labels/sem_seg/masks/train'
    """
    return f"labels/sem_seg/masks/{split}"


def index_file(split: str) -> str:
    """The index that `perception data prepare` writes.

    Example:
        >>> index_file("val")
        'perception_index/bdd100k_val.json'
    """
    return f"{INDEX_FOLDER}/bdd100k_{split}.json"


def check_split(split: str) -> None:
    """Refuse a split that BDD100K does not have.

    Raises:
        DataError: it is none of them.
    """
    if split not in SPLITS:
        raise DataError(f"BDD100K has the splits {', '.join(SPLITS)}, there is none named {split!r}.")
