"""The training sampler of streams: each slot of a batch walks scenes in the order of time, step after step."""

from functools import lru_cache
from typing import Any

import torch

from perception.engine.epoch_dataset import StreamIndex
from perception.engine.positioned_sampler import SlotSampler
from perception.engine.scene_sampler import group_scenes, read_scene_tokens
from perception.registry import DATA_SAMPLERS
from perception.utils import get_logger, stable_seed

logger = get_logger("engine")


@DATA_SAMPLERS.register_module()
class StreamSampler(SlotSampler):
    """Streams of frames: ranks × batch size of them, each always in the same slot of the batch.

    A pass over the dataset: its scenes, or parts of them, stand in an order drawn from (seed, pass) in one line, whose
    N frames are cut into S stretches, one per stream, which begin at frame ⌊sN/S⌋ and have L = ⌈N/S⌉ frames. So all
    batches are full, all passes equally long, and each frame is seen once, but for S·L − N < S frames (less than one
    global batch) that two streams see: the end of a stream that would be one frame short is the beginning of the next.
    A stream starts without history at the start of each part, and of its stretch, which may lie inside a part.

    Everything is a function of (epoch, position). Slot b of rank r of W holds stream b·W + r, so the global batch of a
    step is the same set of frames for any W with S fixed.

    *Source*: the streaming training of StreamPETR (Wang et al., ICCV 2023). Deviations: there each slot takes the next
    scene for ever, without epochs; and scenes are split into a number of parts, not by length.

    Args:
        dataset: names its scenes as for `SceneSampler`, and has `read_streamed`.
        batch_size: streams of this rank; a loader's config gives its own.
        samples_per_epoch: samples of an epoch over all ranks, rounded up to whole batches; by default a pass. A smaller
            number makes short epochs, of which the next one goes on where the last one ended.
        max_frames: longer scenes are split into parts of nearly equal length with at most so many frames, which makes
            the order more random and a history shorter; None: whole scenes.
        shuffle: False keeps the dataset's order.
        seed: seed of the order; the same on every rank.
        rank: this rank; by default the process group's.
        world_size: number of ranks; by default the process group's.

    Raises:
        ValueError: there are fewer frames than streams, the dataset does not name its scenes, or a number is too small.

    Example:
        >>> class Scenes:
        ...     scene_tokens = ("a", "a", "a", "b", "b", "b")
        >>> sampler = StreamSampler(Scenes(), batch_size=2, shuffle=False, rank=0, world_size=1)
        >>> [(int(index), index.previous) for index in sampler]
        [(0, None), (3, None), (1, 0), (4, 3), (2, 1), (5, 4)]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 1,
        samples_per_epoch: int | None = None,
        max_frames: int | None = None,
        shuffle: bool = True,
        seed: int | None = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("samples_per_epoch", samples_per_epoch, 1),
            ("max_frames", max_frames, 2),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.max_frames = max_frames
        self.shuffle = shuffle
        scenes = group_scenes(read_scene_tokens(dataset))
        self._parts = [part for scene in scenes for part in _split(scene, max_frames)]
        self.num_frames = sum(len(scene) for scene in scenes)
        self.num_streams = batch_size * self.world_size
        if self.num_frames < self.num_streams:
            raise ValueError(
                f"the training set has {self.num_frames} samples, less than the {self.num_streams} streams of "
                f"batch_size {batch_size} on {self.world_size} rank(s). Check ann_file and the split, or use a smaller "
                "batch_size"
            )
        self.pass_length = -(-self.num_frames // self.num_streams)
        self.epoch_length = -(-(samples_per_epoch or self.num_frames) // self.num_streams)
        self._read_pass = lru_cache(maxsize=2)(self._line)
        num_twice = self.pass_length * self.num_streams - self.num_frames
        logger.info(
            "%d stream(s) over %d part(s) of %d scene(s), %d steps for all %d samples; %d of these are seen twice",
            self.num_streams, len(self._parts), len(scenes), self.pass_length, self.num_frames, num_twice,
        )  # fmt: skip

    @property
    def options(self) -> dict[str, Any]:
        """What, besides ranks, batch size, seed and dataset, decides which frame follows which; plain values."""
        return {"max_frames": self.max_frames, "shuffle": self.shuffle, "epoch_length": self.epoch_length}

    def _index(self, epoch: int, step: int, stream: int) -> StreamIndex:
        # Passes, one after the other, are one long walk; an epoch is a stretch of it.
        number, offset = divmod(epoch * self.epoch_length + step, self.pass_length)
        line = self._read_pass(number)
        place = stream * self.num_frames // self.num_streams + offset
        index, part = line[place]
        has_previous = offset > 0 and line[place - 1][1] == part
        return StreamIndex.in_stream(
            index,
            epoch=epoch,
            previous=line[place - 1][0] if has_previous else None,
            visit=stable_seed(self.seed, "visit", number, part),
        )

    def _line(self, number: int) -> list[tuple[int, int]]:
        """(index, number of its part) of each frame of a pass, in order."""
        order = list(range(len(self._parts)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(stable_seed(self.seed, "streams", number))
            order = torch.randperm(len(order), generator=generator).tolist()
        return [(index, part) for part in order for index in self._parts[part]]


def check_loader(dataset: Any, sampler: Any, batch_size: int) -> None:
    """Refuse a loader of which one part is made for streams, or for another batch size, and another is not.

    Raises:
        ValueError: the dataset, the sampler or the batch size does not go with the others.
    """
    if getattr(sampler, "batch_size", batch_size) != batch_size:
        raise ValueError(
            f"{type(sampler).__name__} has the batch size {sampler.batch_size}, the loader {batch_size}; what it gives "
            "depends on the place in a batch. Leave the sampler's batch_size out"
        )
    is_streamed = getattr(dataset, "is_streamed", False)
    if not isinstance(sampler, StreamSampler):
        if is_streamed:
            raise ValueError(
                f'the dataset has history="stream", the sampler is {type(sampler).__name__}, which gives no streams. '
                'Use sampler=dict(type=StreamSampler), or history="random"'
            )
        return
    if not is_streamed:
        raise ValueError(
            "StreamSampler needs training data that can be streamed; this dataset, "
            f"{type(getattr(dataset, 'dataset', dataset)).__name__}, is not. Use dataset=dict(type=NuScenesBEVDataset, "
            'history="stream", queue_length=1), and SceneSampler for evaluation'
        )


def _split(scene: list[int], max_frames: int | None) -> list[list[int]]:
    num_parts = 1 if max_frames is None else -(-len(scene) // max_frames)
    bounds = [number * len(scene) // num_parts for number in range(num_parts + 1)]
    return [scene[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
