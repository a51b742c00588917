"""Inference on single images: an FCOS export."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perception.runtime.frame import check_image
from perception.runtime.graph import Arrays, Graph
from perception.runtime.manifest import Manifest
from perception.runtime.nms import select_by_nms
from perception.runtime.prediction import ImagePrediction


class ImagePredictor:
    """An export of a model of single images.

    Args:
        folder: the export folder.
        variant: "fp32", "fp16" or "int8".
        score_threshold: boxes must score more.
        num_threads: of onnxruntime, within an operator; None leaves it to onnxruntime.
        providers: onnxruntime's execution providers, the first choice first.

    Raises:
        ModelError: the folder is damaged, or onnxruntime is missing.
        ValueError: the model is one of camera rigs, or there is no such variant.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        variant: str = "fp32",
        score_threshold: float = 0.0,
        num_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._graph = Graph(folder, variant=variant, num_threads=num_threads, providers=providers)
        if self.manifest.kind != "fcos":
            raise ValueError(
                f"{folder} is a model of camera rigs ({self.manifest.kind}); open it by Predictor."
            )
        self._score_threshold = score_threshold

    @property
    def manifest(self) -> Manifest:
        """What the model is: classes, sizes, versions."""
        return self._graph.manifest

    def predict(self, image: np.ndarray) -> ImagePrediction:
        """Boxes and segmentation of one image.

        Args:
            image: (H, W, 3), uint8, RGB, as decoded.

        Raises:
            ValueError: the image has another form.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[np.ndarray]) -> list[ImagePrediction]:
        """Several images, in one pass where they are of one size and the graph's batch allows it.

        Raises:
            ValueError: an image has another form.
        """
        checked = [check_image(f"image {number}", image) for number, image in enumerate(images)]
        found: list[ImagePrediction] = []
        while len(found) < len(checked):
            rest = checked[len(found) :]
            limit = self._graph.batch_size or len(rest)
            same = next((i for i, image in enumerate(rest) if image.shape != rest[0].shape), len(rest))
            chosen = rest[: min(same, limit)]
            padded = [*chosen, *[chosen[-1]] * ((self._graph.batch_size or 0) - len(chosen))]
            outputs = self._graph.run({"images": np.stack(padded)})
            found += [self._read({name: a[row] for name, a in outputs.items()}) for row in range(len(chosen))]
        return found

    def _read(self, output: Arrays) -> ImagePrediction:
        boxes, scores, labels = thin_out(output, self.manifest)
        is_kept = scores > self._score_threshold
        return ImagePrediction(
            boxes=boxes[is_kept],
            scores=scores[is_kept],
            labels=labels[is_kept],
            names=tuple(self.manifest.classes["boxes"][int(label)] for label in labels[is_kept]),
            seg_classes=output.get("seg"),
        )


def thin_out(output: Arrays, manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), scores (n,) and labels (n,) of one image, overlapping ones removed where the graph left that to us.

    Args:
        output: a row of the graph's outputs.
        manifest: its manifest.
    """
    if "boxes" not in output:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    boxes, scores, labels = output["boxes"], output["scores"], output["labels"]
    if manifest.nms is None:
        kept = np.flatnonzero(scores > 0)
    else:
        kept = select_by_nms(boxes, scores, labels, manifest.nms)
    return boxes[kept], scores[kept], labels[kept]
