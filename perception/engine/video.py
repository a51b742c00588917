"""A scene as a video: what a model sees, frame by frame, six cameras and the view from above side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from perception.config import ConfigError, did_you_mean
from perception.datasets import LoadMultiViewImages, NuScenesBEVDataset, PackBEVInputs
from perception.engine.browse import draw_on_item, map_grid_of, mask_of
from perception.engine.pictures import boxes_of, dataset_settings, predictions
from perception.registry import DATASETS
from perception.utils import name_some, show_progress

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
_DEFAULT_FPS = 2.0  # of nuScenes' key frames
_CAMERA_WIDTH = 480


def write_video(
    cfg: Config,
    model_path: str | Path,
    *,
    scene: str,
    out: str | Path,
    index: str | Path | None = None,
    data_root: str | Path | None = None,
    variant: str | None = None,
    score_threshold: float = 0.2,
    fps: float | None = None,
) -> Path:
    """Predict a scene from its first frame to its last, and write a video of it.

    Args:
        cfg: config of the model and of its test (or else validation) data.
        model_path: step folder, run folder, `.safetensors` file or export folder.
        scene: name or token of the scene.
        out: file to write, .mp4 or .avi.
        index: index file that has the scene, instead of the test loader's.
        data_root: what that index's image paths are relative to; None tries the folders around it.
        variant: graph of an export folder; None: "fp32".
        score_threshold: boxes below are not drawn.
        fps: pictures a second; None: as fast as the scene was recorded.

    Returns:
        The file.

    Raises:
        ConfigError: there is no such scene, the data are single images, or the file's ending is another.
        DataError: the index or an image is missing or defective.
        CheckpointError: the checkpoint is damaged or does not fit.
        ModelError: the export folder is damaged.
        OSError: the file cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in _CODECS:
        raise ConfigError(f"--video {out} must end in {' or '.join(_CODECS)}")
    settings = dataset_settings(cfg, model_path, index=index, data_root=data_root)
    dataset = DATASETS.build(settings)
    if not isinstance(dataset, NuScenesBEVDataset):
        raise ConfigError(
            "a video is made of a scene of camera rigs; these data are single images. Leave --video out"
        )
    items = _items_of(dataset, scene)
    infos = [dataset.get_data_info(item) for item in items]
    fps = _recorded_fps([info.get("timestamp", 0.0) for info in infos]) if fps is None else fps
    pictures = _full_size(dataset)
    map_grid = map_grid_of(settings["pipeline"])
    out.parent.mkdir(parents=True, exist_ok=True)
    writer, size = None, (0, 0)
    found = predictions(cfg, model_path, dataset=dataset, indices=items, variant=variant)
    try:
        for item, result in show_progress(
            zip(items, found, strict=True), f"Drawing {scene}", total=len(items)
        ):
            boxes, labels, scores = boxes_of(result)
            sheet = draw_on_item(
                pictures[item],
                dataset,
                boxes=boxes,
                labels=labels,
                scores=scores,
                map_mask=mask_of(result, "pred_bev_seg"),
                map_grid=map_grid,
                score_threshold=score_threshold,
                cell_width=_CAMERA_WIDTH,
            )
            if writer is None:
                size = (sheet.shape[1] // 2 * 2, sheet.shape[0] // 2 * 2)  # codecs want even sizes
                writer = _open(out, fps, size)
            writer.write(np.ascontiguousarray(sheet[: size[1], : size[0]]))
    finally:
        if writer is not None:
            writer.release()
    return out


def _items_of(dataset: Any, scene: str) -> list[int]:
    """The items of a scene, in the order of time."""
    starts: dict[str, int] = {}
    for item, token in enumerate(dataset.scene_tokens):
        starts.setdefault(token, item)
    names = {dataset.get_data_info(item).get("scene_name", ""): token for token, item in starts.items()}
    token = names.get(scene, scene)
    if token not in starts:
        known = sorted(name for name in names if name) or sorted(starts)
        raise ConfigError(
            f"there is no scene {scene!r}.{did_you_mean(scene, known)} The index has {name_some(known)}."
        )
    return [item for item, found in enumerate(dataset.scene_tokens) if found == token]


def _recorded_fps(timestamps: Sequence[float]) -> float:
    gaps = np.diff(np.asarray(timestamps, np.float64))
    gaps = gaps[gaps > 0]
    return float(1 / np.median(gaps)) if len(gaps) else _DEFAULT_FPS


def _full_size(dataset: NuScenesBEVDataset) -> NuScenesBEVDataset:
    """The same samples with images as they are stored, for the eye."""
    return NuScenesBEVDataset(
        ann_file=str(Path(dataset.ann_file).absolute()),  # it is joined with the root already
        data_root=dataset.data_root,
        test_mode=True,
        class_names=dataset.class_names,
        pipeline=[LoadMultiViewImages(), PackBEVInputs()],
    )


def _open(out: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*_CODECS[out.suffix.lower()]), fps, size)
    if not writer.isOpened():
        raise OSError(
            f"OpenCV cannot write {out}: the folder is not writable, or its build lacks the codec; try .avi"
        )
    return writer
