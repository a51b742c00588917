"""Predictions of a model drawn as sheets, with the ground truth where there is one."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from perception.engine.browse import draw_on_item, find_data_root, map_grid_of, mask_of, short_name
from perception.engine.evaluation_parts import evaluation_parts
from perception.engine.export_run import predict_export
from perception.engine.exported_model import raw_dataset
from perception.engine.image_pictures import draw_image_item, image_record, is_image_item
from perception.engine.run import predict
from perception.engine.run_folder import update_summary
from perception.registry import DATASETS
from perception.runtime import is_export, read_manifest
from perception.structures import MapGrid
from perception.utils import DataError, write_json_atomic
from perception.visualization import save_image

_WARM_UP = 3
_MAX_SAVED_BOXES = 100
_SMALL_CELL = 400  # pixels


def draw_predictions(
    cfg: Config,
    model_path: str | Path,
    *,
    out: str | Path,
    index: str | Path | None = None,
    data_root: str | Path | None = None,
    num: int | None = None,
    tokens: Sequence[str] | None = None,
    score_threshold: float = 0.2,
    is_tall: bool = False,
    variant: str | None = None,
) -> list[Path]:
    """Predict samples, and write a sheet of each and one `predictions.json`.

    A sample that is drawn alone is preceded by up to three frames of its scene, so that a temporal model has its
    history.

    Args:
        cfg: config of the model and of its test (or else validation) data.
        model_path: step folder, run folder, `.safetensors` file or export folder.
        out: folder to write to.
        index: index file to predict instead of the test loader's.
        data_root: what that index's image paths are relative to; None tries the folders around it.
        num: number of samples, evenly spread; None takes all.
        tokens: draw these samples instead: their tokens, or names of images with or without the ending.
        score_threshold: boxes below are not drawn.
        is_tall: sheets for narrow pages: parts below each other, and smaller.
        variant: graph of an export folder; None: "fp32".

    Returns:
        The files written, `predictions.json` last.

    Raises:
        DataError: the index or an image is missing or defective, or there is no sample of a token.
        CheckpointError: the checkpoint is damaged or does not fit.
        ModelError: the export folder is damaged.
    """
    settings = dataset_settings(cfg, model_path, index=index, data_root=data_root)
    dataset = DATASETS.build(settings)
    total = len(dataset)
    chosen: Sequence[Any] = range(total)
    if tokens is not None:
        chosen = _positions(dataset.sample_tokens, tokens)
    elif num is not None:
        chosen = list(np.linspace(0, total - 1, min(num, total)).round().astype(int))
    order, drawn = _with_history(dataset.scene_tokens, [int(item) for item in chosen])
    frame = "LiDAR, bottom-centre x y z l w h yaw vx vy"
    map_grid = map_grid_of(settings["pipeline"])
    written, records, pictures = [], {}, {}
    results = predictions(cfg, model_path, dataset=dataset, indices=order, variant=variant)
    for item, is_drawn, result in zip(order, drawn, results, strict=True):
        if not is_drawn:
            continue
        token = result.metainfo["sample_token"]
        packed = dataset[item]
        if is_image_item(packed):
            frame = "pixels of the image file, x1 y1 x2 y2, far edges outside"
            sheet = draw_image_item(
                packed, dataset, prediction=result, score_threshold=score_threshold, is_tall=is_tall
            )
            records[token] = image_record(result, dataset.metainfo["classes"], num=_MAX_SAVED_BOXES)
        else:
            sheet = _draw(packed, result, map_grid, score_threshold, dataset, is_tall)
            records[token] = _record(result, dataset.class_names)
        written.append(save_image(Path(out) / f"prediction_{item:06d}_{short_name(token)}.jpg", sheet))
        pictures[token] = written[-1].name
    path = Path(out) / "predictions.json"
    write_json_atomic(path, {"frame": frame, "pictures": pictures, "samples": records})
    return [*written, path]


def dataset_settings(
    cfg: Config,
    model_path: str | Path,
    *,
    index: str | Path | None = None,
    data_root: str | Path | None = None,
) -> dict[str, Any]:
    """Config of the data set that a model is shown on: the test loader's, or the same on another index.

    Args:
        cfg: config of the model and of its test (or else validation) data.
        model_path: what is to predict; an export folder's graph resizes and cuts images itself.
        index: index file instead of the test loader's.
        data_root: what that index's image paths are relative to; None tries the folders around it.

    Raises:
        DataError: the index or its images are missing.
    """
    settings = dict(evaluation_parts(cfg)[0]["dataset"])
    if index is not None:
        root = Path(data_root) if data_root is not None else find_data_root(index)
        pipeline = [_tolerant(step) for step in settings["pipeline"]]
        settings.update(ann_file=str(Path(index).absolute()), data_root=str(root), pipeline=pipeline)
    if is_export(model_path):
        settings = raw_dataset(settings, is_rig=read_manifest(model_path).kind == "bevformer")
    return settings


def predictions(
    cfg: Config, model_path: str | Path, *, dataset: Any, indices: Sequence[int], variant: str | None = None
) -> Iterator[Any]:
    """Data samples with predictions of a checkpoint or an export, in the given order.

    Args:
        cfg: config of the model.
        model_path: step folder, run folder, `.safetensors` file or export folder.
        dataset: of `dataset_settings`.
        indices: its items.
        variant: graph of an export folder; None: "fp32".

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit.
        ModelError: the export folder is damaged.
    """
    if is_export(model_path):
        return predict_export(model_path, dataset, indices, variant=variant or "fp32")
    return predict(cfg, model_path, dataset=dataset, indices=indices)


def list_pictures(run_folder: str | Path, pictures: Sequence[Path]) -> None:
    """Name a run's pictures in its `summary.json`, relative to the run folder and in place of those named before.

    Args:
        run_folder: the run folder.
        pictures: what `draw_predictions` returned; files that are no pictures are left out.
    """
    kept = [path for path in pictures if path.suffix.lower() in (".jpg", ".png")]
    update_summary(
        run_folder, {"pictures": [Path(os.path.relpath(path, run_folder)).as_posix() for path in kept]}
    )


def _tolerant(step: Any) -> Any:
    """The same transform, content with an index whose map expansion is not there."""
    return {**step, "on_missing": "skip"} if "grid" in step else step


def _positions(known: Sequence[str], tokens: Sequence[str]) -> list[int]:
    at = {name: position for position, token in enumerate(known) for name in (short_name(token), token)}
    for token in tokens:
        if token not in at:
            raise DataError("this data holds no such sample", sample_token=token)
    return sorted({at[token] for token in tokens})


def _with_history(scenes: Sequence[str], chosen: Sequence[int]) -> tuple[list[int], list[bool]]:
    order: list[int] = []
    drawn: list[bool] = []
    for item in chosen:
        for before in range(max(0, item - _WARM_UP), item):
            if scenes[before] == scenes[item] and (not order or before > order[-1] or order[-1] > item):
                order.append(before)
                drawn.append(False)
        order.append(item)
        drawn.append(True)
    return order, drawn


def _draw(
    item: Any, result: Any, map_grid: MapGrid | None, score_threshold: float, dataset: Any, is_tall: bool
) -> np.ndarray:
    truth = item["data_samples"]
    boxes, labels, scores = boxes_of(result)
    truth_boxes = truth.gt_instances_3d if "gt_instances_3d" in truth else None
    return draw_on_item(
        item,
        dataset,
        boxes=boxes,
        labels=labels,
        scores=scores,
        map_mask=mask_of(result, "pred_bev_seg"),
        gt_boxes=None if truth_boxes is None else truth_boxes.bboxes_3d.tensor.double().numpy(),
        gt_labels=None if truth_boxes is None else truth_boxes.labels_3d.numpy(),
        gt_map_mask=mask_of(truth, "gt_bev_seg"),
        score_threshold=score_threshold,
        map_grid=map_grid,
        is_tall=is_tall,
        **({"cell_width": _SMALL_CELL} if is_tall else {}),
    )


def boxes_of(result: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 9), labels (n,) and scores (n,) of a prediction, those that are finite."""
    if "pred_instances_3d" not in result:
        return np.zeros((0, 9)), np.zeros(0, dtype=np.int64), np.zeros(0)
    found = result.pred_instances_3d
    boxes = found.bboxes_3d.tensor.detach().cpu().double().numpy()
    scores = found.scores_3d.detach().cpu().double().numpy()
    keep = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)  # a diverged model's cannot be drawn
    return boxes[keep], found.labels_3d.cpu().numpy()[keep], scores[keep]


def _record(result: Any, class_names: Sequence[str]) -> list[dict[str, Any]]:
    boxes, labels, scores = boxes_of(result)
    best = np.argsort(-scores, kind="stable")[:_MAX_SAVED_BOXES]
    return [
        {
            "class": class_names[int(labels[i])],
            "score": round(float(scores[i]), 4),
            "box": [round(float(value), 3) for value in boxes[i]],
        }
        for i in best
    ]
