"""The evaluation sampler: each scene stays whole, on one rank, in the order of time."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

from perception.engine import collectives
from perception.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class SceneSampler(Sampler[int]):
    """Whole scenes for each rank, balanced by length: the longest scene left goes to the rank with least to do.

    A model that carries its BEV from frame to frame then sees on any number of ranks what it sees on one. No sample
    is repeated or dropped, so ranks may differ in length.

    Args:
        dataset: has `scene_tokens`, a list of str or a method that returns one, or
            `get_data_info(index)["scene_token"]`; within a scene its order is that of time.
        seed: unused; MMEngine passes it to every sampler.
        rank: this rank; by default the process group's.
        world_size: number of ranks; by default the process group's.

    Raises:
        ValueError: the dataset does not name its scenes.

    Example:
        >>> class Scenes:
        ...     def scene_tokens(self): return ["a", "b", "b", "b", "c"]
        >>> [list(SceneSampler(Scenes(), rank=rank, world_size=2)) for rank in (0, 1)]
        [[1, 2, 3], [0, 4]]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        del seed
        rank = collectives.rank() if rank is None else rank
        world_size = collectives.world_size() if world_size is None else world_size
        scenes = group_scenes(read_scene_tokens(dataset))
        self.scenes = _balance(scenes, num_parts=world_size)[rank]

    def __len__(self) -> int:
        return sum(len(scene) for scene in self.scenes)

    def __iter__(self) -> Iterator[int]:
        for scene in self.scenes:
            yield from scene


class SceneBatchSampler(Sampler[list[int]]):
    """Batches of frames from different scenes, each scene's next frame in the next batch.

    Frames of one scene in one batch would not see each other's history. So a batch of size B reads B streams of
    scenes side by side; towards the end batches get smaller.

    Args:
        sampler: gives this rank's scenes.
        batch_size: number of streams.
    """

    def __init__(self, sampler: SceneSampler, *, batch_size: int) -> None:
        streams = _balance(sampler.scenes, num_parts=batch_size)
        self._streams = [[index for scene in stream for index in scene] for stream in streams]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return max((len(stream) for stream in self._streams), default=0)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            yield [stream[step] for stream in self._streams if step < len(stream)]


def read_scene_tokens(dataset: Any) -> list[str]:
    """One scene token per index.

    Raises:
        ValueError: the dataset does not name its scenes.
    """
    if hasattr(dataset, "scene_tokens"):
        tokens = dataset.scene_tokens
        return list(tokens() if callable(tokens) else tokens)
    if hasattr(dataset, "get_data_info"):
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        if all("scene_token" in info for info in infos):
            return [info["scene_token"] for info in infos]
    raise ValueError(
        f"{type(dataset).__name__} does not name its scenes: it needs scene_tokens(), one token per index. "
        "For single frames use EpochSampler(shuffle=False)"
    )


def group_scenes(tokens: Sequence[str]) -> list[list[int]]:
    """Indices of each scene, in order."""
    scenes: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        scenes.setdefault(token, []).append(index)
    return list(scenes.values())


def _balance(scenes: Sequence[list[int]], *, num_parts: int) -> list[list[list[int]]]:
    parts: list[list[list[int]]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    # Ties are broken by the first index and the lowest part, so that every rank computes the same.
    for scene in sorted(scenes, key=lambda scene: (-len(scene), scene[0])):
        part = loads.index(min(loads))
        parts[part].append(scene)
        loads[part] += len(scene)
    return [sorted(part, key=lambda scene: scene[0]) for part in parts]
