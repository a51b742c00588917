"""The training sampler of frames with different labels: every global batch has the same number of each kind."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from perception.config import did_you_mean
from perception.engine.epoch_dataset import VisitIndex
from perception.engine.positioned_sampler import SlotSampler
from perception.registry import DATA_SAMPLERS
from perception.utils import stable_seed


@DATA_SAMPLERS.register_module()
class MixedLabelSampler(SlotSampler):
    """Batches with a set ratio of label kinds, e.g. 8 frames with boxes and 8 with masks in each 16.

    The frames that carry a kind are its pool. Each pool is passed through in an order drawn from (seed, kind, pass),
    pass after pass, across epochs: so all frames of a kind are seen equally often, whatever the sizes of the pools, and
    a small pool is passed more often than a large one. A frame that carries two kinds is in both pools, and brings both
    labels wherever it is drawn.

    Everything is a function of (epoch, position). A global batch of B = ranks × batch size lists its kinds one after
    the other, and rank r of W takes every W-th from the r-th on. So it is the same for any W with B fixed, and each
    kind is spread over the ranks as evenly as it can be.

    What is random in a frame is drawn from its visit, not from the epoch: an epoch may hold it more than once.

    *Source*: MCLGS (4.1.2) trains on batches of 16 of the joint data and does not give their make-up; equal shares are
    this project's choice.

    Args:
        dataset: has `label_kinds`, the kinds of each index.
        ratio: kind → its share of a global batch; kinds that are not named are not drawn on their own. None: equal
            shares of all kinds that the dataset gives.
        batch_size: frames of a step on this rank; a loader's config gives its own.
        samples_per_epoch: samples of an epoch over all ranks, rounded up to whole batches; by default the length of the
            dataset.
        shuffle: False keeps the dataset's order within each kind.
        seed: seed of the orders; the same on every rank.
        rank: this rank; by default the process group's.
        world_size: number of ranks; by default the process group's.

    Raises:
        ValueError: the dataset does not tell its kinds, a kind has no frame, or the global batch cannot be divided by
            the ratio.

    Example:
        >>> class Frames:
        ...     label_kinds = [("det",), ("det",), ("det",), ("seg",)]
        ...     def __len__(self): return 4
        >>> sampler = MixedLabelSampler(Frames(), batch_size=2, shuffle=False, rank=0, world_size=1)
        >>> [int(index) for index in sampler]
        [0, 3, 1, 3]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        ratio: Mapping[str, int] | None = None,
        batch_size: int = 1,
        samples_per_epoch: int | None = None,
        shuffle: bool = True,
        seed: int | None = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("samples_per_epoch", samples_per_epoch)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        super().__init__(batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.shuffle = shuffle
        self._pools = _pools(dataset, ratio)
        shares = dict.fromkeys(self._pools, 1) if ratio is None else dict(ratio)
        self.counts = _counts(shares, batch_size=batch_size, world_size=self.world_size)
        self._ends = list(accumulate(self.counts.values()))
        global_batch = batch_size * self.world_size
        self.epoch_length = -(-(samples_per_epoch or len(dataset)) // global_batch)
        self._read_pass = lru_cache(maxsize=2 * len(self._pools))(self._order)

    def _index(self, epoch: int, step: int, slot: int) -> VisitIndex:
        number = next(number for number, end in enumerate(self._ends) if slot < end)
        kind, count = list(self.counts.items())[number]
        # All batches' frames of a kind, one after the other, are one long walk through its pool.
        walked = (epoch * self.epoch_length + step) * count + slot - (self._ends[number] - count)
        passes, offset = divmod(walked, len(self._pools[kind]))
        return VisitIndex.in_visit(
            self._read_pass(kind, passes)[offset], epoch=epoch, visit=passes * len(self.counts) + number
        )

    def _order(self, kind: str, number: int) -> list[int]:
        pool = self._pools[kind]
        if not self.shuffle:
            return pool
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "pool", kind, number))
        return [pool[place] for place in torch.randperm(len(pool), generator=generator).tolist()]


def _pools(dataset: Any, ratio: Mapping[str, int] | None) -> dict[str, list[int]]:
    """Indices of the frames that carry each kind."""
    kinds = getattr(dataset, "label_kinds", None)
    if kinds is None:
        raise ValueError(
            f"MixedLabelSampler needs a dataset that tells the label kinds of its frames (label_kinds); "
            f"{type(getattr(dataset, 'dataset', dataset)).__name__} does not. Use dataset=dict(type=BDD100KDataset), "
            "or sampler=dict(type=EpochSampler)"
        )
    pools: dict[str, list[int]] = {}
    for index, carried in enumerate(kinds):
        for kind in carried:
            pools.setdefault(kind, []).append(index)
    if ratio is None:
        return dict(sorted(pools.items()))
    for kind, share in ratio.items():
        if kind not in pools:
            raise ValueError(
                f"MixedLabelSampler.ratio names {kind!r}, which no frame of the training set carries; found are "
                f"{sorted(pools)}.{did_you_mean(kind, pools)} Check ann_file and the dataset's labels"
            )
        if share < 1:
            raise ValueError(f"MixedLabelSampler.ratio.{kind} is {share}; it must be at least 1, or left out")
    if not ratio:
        raise ValueError(f"MixedLabelSampler.ratio is empty; give shares of {sorted(pools)}")
    return {kind: pools[kind] for kind in ratio}


def _counts(ratio: Mapping[str, int], *, batch_size: int, world_size: int) -> dict[str, int]:
    """Frames of each kind in a global batch."""
    whole, parts = batch_size * world_size, sum(ratio.values())
    if any(whole * share % parts for share in ratio.values()):
        raise ValueError(
            f"a global batch of {batch_size} × {world_size} rank(s) = {whole} frames cannot be divided in the ratio "
            f"{dict(ratio)}. Use a batch_size with which it is a multiple of {parts}, or another ratio"
        )
    return {kind: whole * share // parts for kind, share in ratio.items()}
