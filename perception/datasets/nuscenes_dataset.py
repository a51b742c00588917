"""nuScenes key frames with a queue of earlier frames of the same scene."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from perception.config import did_you_mean
from perception.datasets._frames import current_frame_fields, frame_fields, ground_truth
from perception.datasets._indexed_dataset import IndexedDataset, build_transforms, check_choice
from perception.datasets._packed import PackedSamples, read_index
from perception.registry import DATASETS
from perception.structures import CLASS_NAMES, MAP_CLASSES
from perception.utils import DataError, stable_seed


@DATASETS.register_module()
class NuScenesBEVDataset(IndexedDataset):
    """Samples of a prepared index, each with its history.

    In training an item holds `queue_length` frames, oldest first: the current one and earlier ones of its scene. At the
    start of a scene the earliest frame is repeated. In test mode an item is one frame; the model carries the history.
    With `history="stream"` it is one frame in training too: see `read_streamed` and `StreamSampler`.

    The pipeline gets a dict with `frames` (a list of dicts: `images`, `img`, `lidar2img`, `ego_motion`, `has_prev`, …),
    the current sample's fields, `gt_bboxes_3d`, `gt_labels_3d`, `bev_aug`, `rng` and `sequence_rng`. All randomness
    comes from `rng`, which depends on (seed, epoch, index) only, and from `sequence_rng`. That is the same generator,
    but for a streamed frame, where it begins alike for all frames of a visit.

    *Source*: BEVFormer's temporal queue. Deviation: never across scenes; motion is that of the LiDAR (see
    `perception.structures.ego_motion`).

    Args:
        ann_file: index written by `prepare`, absolute or relative to `data_root`.
        data_root: the nuScenes root; image paths are relative to it.
        pipeline: transforms, as configs or callables; the last one is `PackBEVInputs`.
        queue_length: frames of a training item, the current one included; None: 3, or 1 for "stream".
        history: "random" takes `queue_length − 1` of the `queue_length` frames before the current one (upstream's way);
            "consecutive" takes those just before it; "stream" takes none, since the model carries its BEV features from
            step to step.
        class_names: detection classes in the order of their labels; other boxes are dropped.
        use_only_valid: drop boxes without LiDAR and radar points; None means in training only.
        upstream_can_bus: motion as upstream makes it (`perception.structures.upstream_ego_motion`), for weights trained
            with it; not together with BEV augmentations, which upstream does not have.
        on_error: "strict" raises at a defective sample; "skip" takes the next one instead, at most one in a thousand.
            In test mode nothing is ever skipped. Not for streams, which another frame would tear.
        seed: seed of the history and of the augmentation; a run gives its `randomness.seed` unless it is set here.
        test_mode: one frame per item, all boxes kept.
        indices: a subset, as in MMEngine: the first n, the last −n, or a list. Results on it are not comparable.
        metainfo: additions to the index's metainfo.
        lazy_init: read the index at first use instead of now.

    Raises:
        DataError: the index is missing or damaged, or a class is not in it.
        ValueError: an option is out of range.
    """

    METAINFO = {"classes": CLASS_NAMES}

    def __init__(
        self,
        *,
        ann_file: str,
        data_root: str,
        pipeline: Sequence[Mapping[str, Any] | Callable],
        queue_length: int | None = None,
        history: Literal["random", "consecutive", "stream"] = "random",
        class_names: Sequence[str] = CLASS_NAMES,
        use_only_valid: bool | None = None,
        upstream_can_bus: bool = False,
        on_error: Literal["strict", "skip"] = "strict",
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        metainfo: Mapping[str, Any] | None = None,
        lazy_init: bool = False,
    ) -> None:
        if queue_length is not None and queue_length < 1:
            raise ValueError(f"queue_length must be at least 1 (the current frame), got {queue_length}.")
        check_choice("history", history, ("random", "consecutive", "stream"))
        if history == "stream" and not test_mode:
            _check_stream_options(queue_length, on_error)
            queue_length = 1
        self.queue_length = 1 if test_mode else (queue_length or 3)
        self.history = history
        self.class_names = tuple(class_names)
        self.use_only_valid = not test_mode if use_only_valid is None else use_only_valid
        self.upstream_can_bus = upstream_can_bus
        transforms = build_transforms(pipeline)
        found = (transform.map_classes for transform in transforms if hasattr(transform, "map_classes"))
        self.map_classes: tuple[str, ...] = next(found, MAP_CLASSES)
        names = {"classes": self.class_names, "map_classes": self.map_classes}
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            pipeline=transforms,
            on_error=on_error,
            seed=seed,
            test_mode=test_mode,
            indices=indices,
            metainfo={**names, **(metainfo or {})},
            lazy_init=lazy_init,
        )

    # ------------------------------------------------------------------------------------------------ the index

    def _read_samples(self) -> tuple[dict[str, Any], PackedSamples]:
        self._tokens: list[str] = []
        self._scenes: list[str] = []
        metainfo, samples = read_index(self.ann_file, self._visit)
        if len(samples):
            self._label_map = self._map_labels(metainfo.get("categories", {}))
            self._scene_starts = self._find_scene_starts()
        return metainfo, samples

    def _visit(self, sample: dict[str, Any]) -> None:
        self._tokens.append(sample.get("token", ""))
        self._scenes.append(sample.get("scene_token") or sample.get("token", ""))

    def _map_labels(self, categories: Mapping[str, int]) -> dict[int, int]:
        for name in self.class_names:
            if name not in categories:
                raise DataError(
                    f"class {name!r} of class_names is not in the index.{did_you_mean(name, list(categories))} "
                    f"The index has {', '.join(categories)}.",
                    path=self.ann_file,
                )
        return {categories[name]: label for label, name in enumerate(self.class_names)}

    def _find_scene_starts(self) -> np.ndarray:
        """For each sample, the position of its scene's first sample."""
        starts = np.zeros(len(self._scenes), dtype=np.int64)
        seen: set[str] = set()
        for idx, scene in enumerate(self._scenes):
            if idx and scene == self._scenes[idx - 1]:
                starts[idx] = starts[idx - 1]
                continue
            if scene in seen:
                raise DataError(
                    f"the samples of scene {scene} are not consecutive in the index; build it again with "
                    "`perception data prepare`.",
                    path=self.ann_file,
                )
            seen.add(scene)
            starts[idx] = idx
        return starts

    def _token_at(self, position: int) -> str:
        return self._tokens[position]

    @property
    def scene_tokens(self) -> list[str]:
        """Scene of each item; items of one scene are in order of time."""
        self.full_init()
        return [self._scenes[idx] for idx in self._order]

    def read_cameras(self) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
        """Of the first sample of each scene: token, lidar2img (N, 4, 4) and image size (width, height), as stored.

        Samples whose index names no image sizes are passed over.

        Raises:
            DataError: a sample's entry is defective.
        """
        self.full_init()
        for position in np.unique(self._scene_starts[self._order]):
            frame = frame_fields(self._samples[int(position)], None, data_root=self.data_root)
            sizes = set(frame["img_sizes"].values())
            if len(sizes) == 1 and None not in sizes:
                yield frame["sample_token"], frame["lidar2img"], sizes.pop()

    # ------------------------------------------------------------------------------------------------ items

    @property
    def is_streamed(self) -> bool:
        """Whether items are single training frames, to be read in the order of streams."""
        return self.history == "stream" and not self.test_mode

    def read_streamed(self, idx: int, *, previous: int | None, visit: int) -> Any:
        """One frame of a stream.

        Motion and `has_prev` are relative to the frame that the stream had just before, which need not be the index's
        when this dataset is a subset; its token is the metainfo `carried_token`. `dataset[idx]` is a stream's first
        frame.

        Args:
            idx: the item.
            previous: the item that the stream had just before; None where there is none ("" is the token then).
            visit: what `sequence_rng` is drawn from, besides the seed.

        Raises:
            DataError: the sample is defective.
            ValueError: this dataset does not have `history="stream"`, or `previous` is no earlier frame of the scene.
        """
        if not self.is_streamed:
            raise ValueError(
                f'streams need training data with history="stream", this dataset has history={self.history!r} and '
                f"test_mode={self.test_mode}."
            )
        if previous is not None:
            place, before = self._order[idx], self._order[previous]
            if not self._scene_starts[place] <= before < place:
                raise ValueError(
                    f"item {previous} (sample {self._tokens[before]}) is no earlier frame of the scene of item {idx} "
                    f"(sample {self._tokens[place]}), so it can't be its history; give `indices` in the order of time."
                )
        return self.prepare_data(idx, previous=previous, visit=visit)

    def prepare_data(self, idx: int, *, previous: int | None = None, visit: int | None = None) -> Any:
        """Compose an item's frames and run the pipeline on them; `previous` and `visit` as in `read_streamed`."""
        position = int(self._order[idx])
        before = None if previous is None else int(self._order[previous])
        rng = self._generator(position)
        queue = self._queue(position, rng)
        infos = {frame: self._samples[frame] for frame in set(queue)}
        current = infos[position]
        carried = (
            {"carried_token": "" if before is None else self._tokens[before]} if self.is_streamed else {}
        )
        results = {
            **current_frame_fields(current, data_root=self.data_root),
            **ground_truth(current, label_map=self._label_map, use_only_valid=self.use_only_valid),
            **carried,
            "frames": self._frames(queue, infos, before),
            "bev_aug": np.eye(4),
            "rng": rng,
            "sequence_rng": rng
            if visit is None
            else np.random.default_rng(stable_seed(self.seed, "visit", visit)),
            "sample_idx": position,
        }
        return self.pipeline(results)

    def _queue(self, position: int, rng: np.random.Generator) -> list[int]:
        """Positions of an item's frames, oldest first, padded at the front by the earliest one."""
        num_history = self.queue_length - 1
        if num_history == 0:
            return [position]
        reach = self.queue_length if self.history == "random" else num_history
        candidates = np.arange(max(position - reach, int(self._scene_starts[position])), position)
        if len(candidates) > num_history:
            candidates = np.sort(rng.choice(candidates, num_history, replace=False))
        frames = [*candidates.tolist(), position]
        return [frames[0]] * (self.queue_length - len(frames)) + frames

    def _frames(
        self, queue: list[int], infos: dict[int, dict[str, Any]], before_first: int | None
    ) -> list[dict[str, Any]]:
        previous: list[int | None] = [before_first, *queue[:-1]]
        if self.test_mode and queue[0] > self._scene_starts[queue[0]]:
            previous[0] = queue[0] - 1
        frames = []
        for frame, before in zip(queue, previous, strict=True):
            has_prev = before is not None and before != frame
            prev_info = None
            if before is not None and has_prev:
                prev_info = infos[before] if before in infos else self._samples[before]
            frames.append(
                frame_fields(
                    infos[frame],
                    prev_info,
                    data_root=self.data_root,
                    upstream_can_bus=self.upstream_can_bus,
                )
            )
        return frames


def _check_stream_options(queue_length: int | None, on_error: str) -> None:
    if queue_length not in (None, 1):
        raise ValueError(
            f'history="stream" gives one frame per item, queue_length is {queue_length}; set queue_length=1, or '
            'history="random" for a queue in each item.'
        )
    if on_error == "skip":
        raise ValueError(
            'history="stream" does not go with on_error="skip": a frame in place of a defective one would tear its '
            'stream. Repair the data (`perception data verify` lists the defects) and use on_error="strict".'
        )
