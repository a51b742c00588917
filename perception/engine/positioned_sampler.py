"""What the training samplers share: a position that a run saves and goes on from, and ranks that share a batch."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from perception.engine import collectives


class PositionedSampler(Sampler[int]):
    """A sampler that starts anywhere: in an epoch, after some of this rank's samples. Subclasses have a length.

    Args:
        seed: seed of the order; the same on every rank.
        rank: this rank; by default the process group's.
        world_size: number of ranks; by default the process group's.
    """

    def __init__(self, *, seed: int | None, rank: int | None, world_size: int | None) -> None:
        self.seed = seed or 0
        self.rank = collectives.rank() if rank is None else rank
        self.world_size = collectives.world_size() if world_size is None else world_size
        self._epoch = 0
        self._num_consumed = 0

    def __len__(self) -> int:
        """Samples of an epoch on this rank."""
        raise NotImplementedError

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, samples of it that this rank has already trained on) from which the next iteration starts."""
        return self._epoch, self._num_consumed

    def set_position(self, *, epoch: int, num_consumed: int = 0) -> None:
        """Start the next iteration in `epoch`, after `num_consumed` samples of this rank.

        Raises:
            ValueError: the position lies outside the epoch.
        """
        if epoch < 0 or not 0 <= num_consumed <= len(self):
            raise ValueError(
                f"position (epoch {epoch}, {num_consumed} samples) lies outside an epoch of {len(self)} samples"
            )
        self._epoch, self._num_consumed = epoch, num_consumed

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch` (the name that MMEngine and torch use)."""
        self.set_position(epoch=epoch)


class SlotSampler(PositionedSampler):
    """A sampler for which a sample's slot in the global batch matters; rank r of W has every W-th from the r-th on.

    Subclasses set `epoch_length`, steps of an epoch, and say what a slot holds.

    Args:
        batch_size: samples of a step on this rank.
        seed: as `PositionedSampler`.
        rank: as `PositionedSampler`.
        world_size: as `PositionedSampler`.
    """

    epoch_length: int

    def __init__(
        self, *, batch_size: int, seed: int | None, rank: int | None, world_size: int | None
    ) -> None:
        super().__init__(seed=seed, rank=rank, world_size=world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.epoch_length * self.batch_size

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch
        for place in range(self._num_consumed, len(self)):
            step, slot = divmod(place, self.batch_size)
            yield self._index(epoch, step, slot * self.world_size + self.rank)

    def _index(self, epoch: int, step: int, slot: int) -> int:
        raise NotImplementedError
