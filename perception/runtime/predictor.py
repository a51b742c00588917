"""Inference on streams of camera rigs: the history, the motion between frames, and the boxes' frames of reference.

Legend: N cameras, Q BEV cells, C channels, K boxes of the graph.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perception.runtime.frame import CheckedFrame, Frame, check_frame
from perception.runtime.geometry import ego_motion
from perception.runtime.graph import Arrays, Graph
from perception.runtime.manifest import Manifest, Streaming
from perception.runtime.prediction import Prediction, attributes_of, transform_boxes


@dataclass(frozen=True)
class _Past:
    """What a stream remembers of its last frame."""

    bev: np.ndarray | None  # (Q, C); None of a model that takes none
    ego2global: np.ndarray
    timestamp: float
    scene: Hashable


class Predictor:
    """A BEVFormer export on one stream or several.

    Each stream has its history: the BEV features and the pose of its last frame (for a model without history the pose
    alone, which its motion is measured against). It starts anew at another scene and after a gap in time or a jump in
    place that training never showed; `Prediction.reset_reason` tells.

    Args:
        folder: the export folder.
        variant: "fp32", "fp16" or "int8".
        score_threshold: boxes must score more.
        max_gap_s: longest time between frames, seconds; None takes the manifest's.
        max_jump_m: longest way between frames, metres; None takes the manifest's.
        num_threads: of onnxruntime, within an operator; None leaves it to onnxruntime.
        providers: onnxruntime's execution providers, the first choice first.

    Raises:
        ModelError: the folder is damaged, or onnxruntime is missing.
        ValueError: the model is one of single images, there is no such variant, or a limit is not positive.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        variant: str = "fp32",
        score_threshold: float = 0.0,
        max_gap_s: float | None = None,
        max_jump_m: float | None = None,
        num_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._graph = Graph(folder, variant=variant, num_threads=num_threads, providers=providers)
        if self.manifest.kind != "bevformer":
            raise ValueError(
                f"{folder} is a model of single images ({self.manifest.kind}); open it by ImagePredictor."
            )
        limits = self.manifest.streaming or Streaming()
        self._max_gap_s = limits.max_gap_s if max_gap_s is None else max_gap_s
        self._max_jump_m = limits.max_jump_m if max_jump_m is None else max_jump_m
        for name, given in (("max_gap_s", max_gap_s), ("max_jump_m", max_jump_m)):
            if given is not None and not given > 0:
                raise ValueError(f"{name} must be positive, got {given}.")
        self._is_upstream = limits.motion == "upstream"
        self._score_threshold = score_threshold
        self._streams: dict[Hashable, _Past] = {}

    @property
    def manifest(self) -> Manifest:
        """What the model is: classes, cameras, ranges, versions."""
        return self._graph.manifest

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """Streams that have a past; each holds Q·C floats until it is reset."""
        return tuple(self._streams)

    def reset(self, stream: Hashable | None = None) -> None:
        """Forget a stream's history, or all streams'; one that has none is no error."""
        if stream is None:
            self._streams.clear()
        else:
            self._streams.pop(stream, None)

    def predict(self, frame: Frame) -> Prediction:
        """Boxes and map of one frame; its stream remembers it.

        Raises:
            ValueError: as `check_frame`; time does not go forward within the stream's scene; or what the graph made of
                the frame is not finite.
        """
        return self.predict_batch([frame])[0]

    def predict_batch(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Frames of different streams, in one pass where the graph's batch and the images' sizes allow it.

        If one frame is wrong, none is predicted and no stream changes.

        Raises:
            ValueError: as `predict`; or a stream occurs twice.
        """
        streams = [frame.stream for frame in frames]
        twice = {stream for stream in streams if streams.count(stream) > 1}
        if twice:
            raise ValueError(
                f"stream {twice.pop()!r} occurs twice in a batch; hand its frames over one after another."
            )
        checked = [check_frame(frame, self.manifest.cameras) for frame in frames]
        pasts = [self._past(frame, found) for frame, found in zip(frames, checked, strict=True)]
        outputs: list[Arrays] = []
        for chosen in self._chunks(checked):
            outputs += self._run([checked[i] for i in chosen], [pasts[i][0] for i in chosen])
        for frame, output in zip(frames, outputs, strict=True):
            self._check_finite(frame, output)
        predictions = []
        for frame, found, (past, reason), output in zip(frames, checked, pasts, outputs, strict=True):
            bev = output["bev"].copy() if self.manifest.has_history else None
            self._streams[frame.stream] = _Past(bev, found.ego2global, found.timestamp, frame.scene)
            predictions.append(self._read(frame, found, output, past is not None, reason))
        return predictions

    def _past(self, frame: Frame, found: CheckedFrame) -> tuple[_Past | None, str]:
        """The history that a frame goes with, or why it has none; a model without one still takes the motion."""
        past = self._streams.get(frame.stream)
        if past is None:
            return None, "start"
        if frame.scene != past.scene:
            return None, "scene"
        gap = found.timestamp - past.timestamp
        if gap <= 0:
            raise ValueError(
                f"stream {frame.stream!r}: time must go forward, but {found.timestamp:.6f} s follows "
                f"{past.timestamp:.6f} s. For a replay give another scene, or call reset({frame.stream!r}) first."
            )
        if gap > self._max_gap_s:
            return None, "gap"
        if np.linalg.norm(found.ego2global[:3, 3] - past.ego2global[:3, 3]) > self._max_jump_m:
            return None, "jump"
        return past, ""

    def _check_finite(self, frame: Frame, output: Arrays) -> None:
        bad = [name for name in ("scores", "seg", "bev") if not np.isfinite(output.get(name, 0.0)).all()]
        if bad:
            encoder = self.manifest.training_config.get("model", {}).get("bev_encoder", {})
            slots = encoder.get("max_cameras_per_cell")
            raise ValueError(
                f"stream {frame.stream!r}: what the graph made of the frame is not finite ({', '.join(bad)}). Look at "
                "the calibration"
                + (
                    f": the graph has room for {slots} cameras that see one BEV cell; a rig where more do needs an "
                    "export with a larger --set model.bev_encoder.max_cameras_per_cell."
                    if slots
                    else "."
                )
            )

    def _chunks(self, checked: Sequence[CheckedFrame]) -> list[list[int]]:
        """Runs of neighbours that go through the graph together."""
        limit = self._graph.batch_size or len(checked)
        chunks: list[list[int]] = []
        for index, found in enumerate(checked):
            fits = chunks and len(chunks[-1]) < limit
            if fits and checked[chunks[-1][0]].images.shape == found.images.shape:
                chunks[-1].append(index)
            else:
                chunks.append([index])
        return chunks

    def _run(self, frames: Sequence[CheckedFrame], pasts: Sequence[_Past | None]) -> list[Arrays]:
        count = len(frames)
        padding = max((self._graph.batch_size or count) - count, 0)  # a graph of a fixed batch gets copies
        frames, pasts = [*frames, *[frames[-1]] * padding], [*pasts, *[None] * padding]
        inputs: Arrays = {
            "images": np.stack([frame.images for frame in frames]),
            "lidar2img": np.stack([frame.lidar2img for frame in frames]),
            "ego_motion": np.stack(
                [
                    ego_motion(
                        None if past is None else past.ego2global,
                        frame.ego2global,
                        frame.lidar2ego,
                        frame.can,
                        is_upstream=self._is_upstream,
                    )
                    for frame, past in zip(frames, pasts, strict=True)
                ]
            ),
            "use_prev_bev": np.array([past is not None for past in pasts]),
        }
        if self.manifest.has_history:
            empty = self._graph.empty_history(1)[0]
            inputs["prev_bev"] = np.stack(
                [empty if past is None or past.bev is None else past.bev for past in pasts]
            )
        wanted = {spec.name: spec.dtype for spec in self.manifest.inputs}
        outputs = self._graph.run(
            {name: inputs[name].astype(dtype, copy=False) for name, dtype in wanted.items() if name in inputs}
        )
        return [{name: array[row] for name, array in outputs.items()} for row in range(count)]

    def _read(
        self, frame: Frame, found: CheckedFrame, output: Arrays, has_history: bool, reason: str
    ) -> Prediction:
        boxes = output.get("boxes", np.zeros((0, 9), np.float32))
        scores = output.get("scores", np.zeros(0, np.float32))
        labels = output.get("labels", np.zeros(0, np.int64))
        is_kept = (scores > self._score_threshold) & np.isfinite(boxes[:, :7]).all(axis=1)
        boxes, scores, labels = boxes[is_kept], scores[is_kept], labels[is_kept]
        names = tuple(self.manifest.classes["boxes"][int(label)] for label in labels)
        return Prediction(
            stream=frame.stream,
            timestamp=found.timestamp,
            boxes_lidar=boxes,
            boxes_ego=transform_boxes(boxes, found.lidar2ego),
            boxes_global=transform_boxes(boxes, found.ego2global @ found.lidar2ego),
            scores=scores,
            labels=labels,
            names=names,
            attributes=attributes_of(names, boxes),
            map_probabilities=output.get("seg"),
            has_history=has_history,
            reset_reason=reason,
        )
