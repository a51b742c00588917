"""The training sampler: shuffled by (seed, epoch), split over ranks, continued in mid-epoch without replay."""

from collections.abc import Iterator, Sized

import torch

from perception.engine.epoch_dataset import EpochIndex
from perception.engine.positioned_sampler import PositionedSampler
from perception.registry import DATA_SAMPLERS
from perception.utils import stable_seed


@DATA_SAMPLERS.register_module()
class EpochSampler(PositionedSampler):
    """Each epoch is one permutation of the dataset, drawn from (seed, epoch) alone, or a stretch of such permutations.

    Rank r of W takes every W-th index from the r-th on, so the global batch of step k is the same set of samples for
    any W with W × batch size fixed. The epoch is padded from its own start to a multiple of W.

    Args:
        dataset: anything with a length.
        samples_per_epoch: samples of an epoch over all ranks; by default all. A smaller number makes short epochs, for
            all that counts epochs (schedules, evaluations, priorities): the next one goes on where the last one
            ended, so that all samples are still seen equally often.
        shuffle: False keeps the dataset's order.
        seed: seed of the permutations; the same on every rank.
        rank: this rank; by default the process group's.
        world_size: number of ranks; by default the process group's.

    Raises:
        ValueError: the dataset is empty, or `samples_per_epoch` is not positive.

    Example:
        >>> sampler = EpochSampler(range(6), seed=0, rank=0, world_size=1)
        >>> whole = list(sampler)
        >>> sampler.set_position(epoch=0, num_consumed=4)
        >>> list(sampler) == whole[4:]
        True
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        samples_per_epoch: int | None = None,
        shuffle: bool = True,
        seed: int | None = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the training set is empty (0 samples). Check ann_file and the split")
        if samples_per_epoch is not None and samples_per_epoch < 1:
            raise ValueError(
                f"samples_per_epoch is {samples_per_epoch}; it must be at least 1, or None for all"
            )
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.dataset_length = len(dataset)
        self.num_samples = samples_per_epoch or self.dataset_length
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch
        for index in self._indices()[self._num_consumed :]:
            yield EpochIndex.of(index, epoch=epoch)

    def _indices(self) -> list[int]:
        # The permutations of the dataset, one after the other, are one long line; an epoch is a stretch of it.
        first = self._epoch * self.num_samples
        start, end = first // self.dataset_length, -(-(first + self.num_samples) // self.dataset_length)
        line = [index for number in range(start, end) for index in self._permutation(number)]
        offset = first - start * self.dataset_length
        order = line[offset : offset + self.num_samples]
        total = len(self) * self.world_size
        padded = (order * (-(-total // len(order))))[:total]
        return padded[self.rank : total : self.world_size]

    def _permutation(self, number: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.dataset_length))
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", number))
        return torch.randperm(self.dataset_length, generator=generator).tolist()
