"""An exported model in the place of a torch one: batches of the same data sets in, the same data samples out.

Legend: N cameras, Q BEV cells, C channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData, PixelData

from perception.config.image_sizes import step_name
from perception.datasets import LoadSegMask, raw_pipeline
from perception.runtime import Graph, Manifest, thin_out

_LOADERS = ("LoadMultiViewImages", "LoadImage2D")


class ExportedModel:
    """A graph behind the two calls that evaluation makes of a model: `reset_history` and `test_step`.

    History goes by sample tokens, as `BEVFormer.predict` has it: the BEV features of the call before are kept for the
    samples whose `prev_token` names them.

    Args:
        folder: the export folder.
        variant: "fp32", "fp16" or "int8".
        num_threads: of onnxruntime; None leaves it to onnxruntime.

    Raises:
        ModelError: the folder is damaged, or onnxruntime is missing.
        ValueError: there is no such variant.
    """

    def __init__(self, folder: str | Path, *, variant: str = "fp32", num_threads: int | None = None) -> None:
        self._graph = Graph(folder, variant=variant, num_threads=num_threads)
        self._history: dict[str, np.ndarray] = {}

    @property
    def manifest(self) -> Manifest:
        """What the model is."""
        return self._graph.manifest

    def reset_history(self) -> None:
        """Forget the BEV features of the last batch."""
        self._history = {}

    def test_step(self, data: Mapping[str, Any]) -> list[Any]:
        """Predict a pseudo-collated batch, one sample after another.

        Args:
            data: "inputs" and "data_samples" as of a torch model; images as `raw_dataset` leaves them.

        Returns:
            Data samples with `pred_instances_3d` and `pred_bev_seg`, or `pred_instances` and `pred_sem_seg`.
        """
        is_rig = self.manifest.kind == "bevformer"
        kept: dict[str, np.ndarray] = {}
        results = []
        for index, sample in enumerate(data["data_samples"]):
            inputs = {key: values[index] for key, values in data["inputs"].items()}
            if is_rig:
                outputs = self._run_rig(inputs, sample.metainfo)
                if "bev" in outputs:
                    kept[sample.metainfo["sample_token"]] = outputs["bev"]
                results.append(_rig_result(sample, outputs))
            else:
                image = _rgb(inputs["img"])
                results.append(_image_result(sample, self._run({"images": image}), self.manifest))
        self._history = kept
        return results

    def _run_rig(
        self, inputs: Mapping[str, torch.Tensor], metainfo: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        arrays = {
            "images": _rgb(inputs["img"][-1]),
            "lidar2img": inputs["lidar2img"][-1].numpy(),
            "ego_motion": inputs["ego_motion"][-1].numpy(),
        }
        if self.manifest.has_history:
            before = self._history.get(metainfo["prev_token"]) if bool(inputs["has_prev"][-1]) else None
            arrays["prev_bev"] = self._graph.empty_history(1)[0] if before is None else before
            arrays["use_prev_bev"] = np.array(before is not None)
        return self._run(arrays)

    def _run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One sample; a graph of a fixed batch gets it several times."""
        count = self._graph.batch_size or 1
        batched = {
            name: np.repeat(array[None].astype(self.manifest.input(name).dtype, copy=False), count, axis=0)
            for name, array in arrays.items()
        }
        return {name: array[0] for name, array in self._graph.run(batched).items()}


def raw_dataset(dataset: Mapping[str, Any], *, is_rig: bool, full_images: bool = False) -> dict[str, Any]:
    """A data set's config whose images are as an exported graph takes them: decoded, not resized or cut.

    Args:
        dataset: of the test loader.
        is_rig: whether it is one of camera rigs. The masks of single images have the original's size, so these are
            decoded in full.
        full_images: decode in full too where training lets the JPEG decoder shrink images and where it reads an image
            cache, as a vehicle does.

    Raises:
        ConfigError: the pipeline has a step that an exported graph does not do.
    """
    raw, _ = raw_pipeline(dataset)
    steps = []
    for step in raw["pipeline"]:
        is_loader = step_name(step) in _LOADERS
        if is_loader and (full_images or not is_rig):
            step = {key: value for key, value in step.items() if key not in ("target_size", "cache_dir")}
        steps.append(step)
        if is_loader and not is_rig and any(step_name(one) == "LoadSegMask" for one in dataset["pipeline"]):
            steps.append({"type": LoadSegMask})
    return {**raw, "pipeline": steps}


def _rgb(images: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) BGR → (..., H, W, 3) RGB."""
    return np.ascontiguousarray(images.movedim(-3, -1).flip(-1).numpy())


def _rig_result(sample: Any, outputs: Mapping[str, np.ndarray]) -> Any:
    result = sample.new()
    if "boxes" in outputs:
        is_box = outputs["scores"] > 0
        boxes = torch.from_numpy(outputs["boxes"][is_box])
        result.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[-1]),
            scores_3d=torch.from_numpy(outputs["scores"][is_box]),
            labels_3d=torch.from_numpy(outputs["labels"][is_box]),
        )
    if "seg" in outputs:
        classes = outputs["seg"].argmax(axis=0)
        result.pred_bev_seg = PixelData(sem_seg=torch.from_numpy(classes)[None])
    return result


def _image_result(sample: Any, outputs: dict[str, np.ndarray], manifest: Manifest) -> Any:
    result = sample.new()
    if "boxes" in outputs:
        boxes, scores, labels = thin_out(outputs, manifest)
        scale: Sequence[float] = sample.metainfo["scale_factor"][:2]
        result.pred_instances = InstanceData(
            bboxes=torch.from_numpy(boxes / np.array([*scale, *scale], np.float32)),
            scores=torch.from_numpy(scores),
            labels=torch.from_numpy(labels),
        )
    if "seg" in outputs:
        result.pred_sem_seg = PixelData(sem_seg=torch.from_numpy(outputs["seg"].astype(np.int64))[None])
    return result
