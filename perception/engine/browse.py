"""Draw what a dataset gives to training: after loading and augmentation, with boxes, map lines or masks drawn in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.config import ConfigError
from perception.datasets import (
    BDD100KDataset,
    LoadBEVMap,
    LoadImage2D,
    LoadMultiViewImages,
    LoadSegMask,
    NuScenesBEVDataset,
    PackBEVInputs,
    PackImageInputs,
    read_first_sample,
)
from perception.engine.image_pictures import draw_image_item, is_image_item
from perception.registry import DATASETS
from perception.structures import CAMERA_NAMES, MapGrid
from perception.utils import DataError
from perception.visualization import draw_sample, save_image


def browse(
    dataset: Mapping[str, Any] | NuScenesBEVDataset | BDD100KDataset,
    *,
    out: str | Path,
    indices: Sequence[int] | None = None,
    num: int = 8,
    epoch: int = 0,
) -> list[Path]:
    """Write one sheet for each of some items: six cameras and the view from above, or one picture with 2D labels.

    Args:
        dataset: a dataset or its config.
        out: folder for the pictures.
        indices: items to draw; None spreads `num` of them evenly over the dataset.
        num: number of items if `indices` is None.
        epoch: epoch whose augmentation is shown.

    Returns:
        The files written.

    Raises:
        ConfigError: an index is out of range.
        DataError: a sample is defective.
    """
    if isinstance(dataset, NuScenesBEVDataset | BDD100KDataset):
        built, map_grid = dataset, None
    else:
        settings: dict[str, Any] = dict(dataset)
        built, map_grid = DATASETS.build(settings), map_grid_of(settings["pipeline"])
    built.set_epoch(epoch)
    if indices is None:
        indices = sorted(
            set(np.linspace(0, len(built) - 1, min(num, len(built))).round().astype(int).tolist())
        )
    wrong = [index for index in indices if not 0 <= index < len(built)]
    if wrong:
        raise ConfigError(f"there is no item {wrong[0]}; this dataset has the items 0 to {len(built) - 1}.")
    written = []
    for index in indices:
        item = built[index]
        truth = item["data_samples"]
        if is_image_item(item):
            sheet = draw_image_item(item, built)
        else:
            sheet = draw_on_item(
                item,
                built,
                boxes=truth.gt_instances_3d.bboxes_3d.tensor.double().numpy(),
                labels=truth.gt_instances_3d.labels_3d.numpy(),
                map_mask=mask_of(truth, "gt_bev_seg"),
                map_grid=map_grid,
            )
        path = Path(out) / f"{index:06d}_{short_name(truth.metainfo['sample_token'])}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(save_image(path, sheet))
    return written


def short_name(token: str) -> str:
    """What a picture of a sample is called: the start of a token, or the stem of an image's name.

    Example:
        >>> short_name("ca9a282c9e77460f8360f564131a8af5"), short_name("b1c66a42-6f7d68ca.jpg")
        ('ca9a282c9e77', 'b1c66a42-6f7d68ca')
    """
    return Path(token).stem if Path(token).suffix in (".jpg", ".png") else token[:12]


def draw_on_item(item: Mapping[str, Any], dataset: NuScenesBEVDataset, **drawn: Any) -> np.ndarray:
    """The sheet of a packed dataset item's current frame.

    Args:
        item: `inputs` and `data_samples` as `PackBEVInputs` makes them.
        dataset: the dataset it comes from.
        drawn: boxes, labels, masks and options, as in `perception.visualization.draw_sample`.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    inputs, metainfo = item["inputs"], item["data_samples"].metainfo
    images = [image.permute(1, 2, 0).contiguous().numpy() for image in inputs["img"][-1]]  # N × (H, W, 3)
    return draw_sample(
        dict(zip(CAMERA_NAMES, images, strict=True)),
        dict(zip(CAMERA_NAMES, inputs["lidar2img"][-1].double().numpy(), strict=True)),
        class_names=dataset.class_names,
        map_classes=dataset.map_classes,
        title=f"{metainfo.get('scene_name', '')}  frame {metainfo.get('frame_idx', '')}",
        **drawn,
    )


def mask_of(sample: Any, key: str) -> np.ndarray | None:
    """(rows, columns) of a data sample's map, if it has one."""
    return sample.get(key).sem_seg[0].cpu().numpy() if key in sample else None


def dataset_of_index(
    index: str | Path, *, data_root: str | Path | None = None
) -> NuScenesBEVDataset | BDD100KDataset:
    """An unaugmented, full-size dataset of an index file; the map is drawn where its expansion is there.

    Args:
        index: file that `perception data prepare` wrote, or an info.json of the same form.
        data_root: what its image paths are relative to; None tries the index's folder and the one above.

    Raises:
        DataError: the index cannot be read, or its images are not found.
    """
    index = Path(index).absolute()
    root = Path(data_root) if data_root is not None else find_data_root(index)
    if "img_path" in read_first_sample(index):  # one image per sample
        return BDD100KDataset(
            ann_file=str(index),
            data_root=str(root),
            test_mode=True,
            pipeline=[LoadImage2D(), LoadSegMask(), PackImageInputs()],
        )
    return NuScenesBEVDataset(
        ann_file=str(index),
        data_root=str(root),
        test_mode=True,
        pipeline=[
            LoadMultiViewImages(),
            LoadBEVMap(
                grid=MapGrid(), on_missing="skip", cache_dir=None
            ),  # looking at data writes nothing there
            PackBEVInputs(),
        ],
    )


def find_data_root(index: str | Path) -> Path:
    """The folder that an index's image paths are relative to: the index's own or the one above.

    Raises:
        DataError: the index is missing or not one, or its first image lies in neither.
    """
    index = Path(index).absolute()
    first = read_first_sample(index)
    try:
        name = first["img_path"] if "img_path" in first else next(iter(first["images"].values()))["img_path"]
    except (KeyError, StopIteration, TypeError, AttributeError) as error:
        raise DataError(
            "the index's first sample names no image; make the index by `perception data prepare`", path=index
        ) from error
    for folder in (index.parent, index.parent.parent):
        if (folder / name).is_file():
            return folder
    raise DataError(
        f"the index's first image {name} is neither below {index.parent} nor below {index.parent.parent}; "
        "name the folder by --data-root",
        path=index,
    )


def map_grid_of(pipeline: Sequence[Mapping[str, Any]]) -> MapGrid | None:
    """The map grid that a pipeline's config names, if any."""
    grid = next((step["grid"] for step in pipeline if "grid" in step), None)
    if grid is None or isinstance(grid, MapGrid):
        return grid
    settings: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in grid.items()}
    return MapGrid(**settings)
