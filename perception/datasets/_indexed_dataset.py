"""What datasets of a prepared index share: subsets, epochs, visits, and what happens at a defective sample."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from mmengine.dataset import BaseDataset

from perception.config import did_you_mean
from perception.datasets._packed import PackedSamples
from perception.registry import TRANSFORMS
from perception.utils import DataError, get_logger, stable_seed

MAX_SKIPPED_FRACTION = 0.001
"""Samples that may be left out as defective, of all; one always may."""


class IndexedDataset(BaseDataset):
    """Samples of an index that `perception data prepare` wrote.

    A subclass reads the index (`_read_samples`), names its samples (`_token_at`) and composes items (`prepare_data`).

    Args:
        ann_file: the index, absolute or relative to `data_root`.
        data_root: the data's root; paths in the index are relative to it.
        pipeline: transforms, as configs or callables.
        on_error: "strict" raises at a defective sample; "skip" takes another one instead, at most one in a thousand.
            In test mode nothing is ever skipped.
        seed: seed of all that is random in an item.
        test_mode: whether items are for evaluation.
        indices: a subset, as in MMEngine: the first n, the last −n, or a list. Results on it are not comparable.
        metainfo: additions to the index's metainfo.
        lazy_init: read the index at first use instead of now.

    Raises:
        DataError: the index is missing or damaged.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        ann_file: str,
        data_root: str,
        pipeline: Sequence[Mapping[str, Any] | Callable],
        on_error: Literal["strict", "skip"],
        seed: int,
        test_mode: bool,
        indices: int | Sequence[int] | None,
        metainfo: Mapping[str, Any],
        lazy_init: bool,
    ) -> None:
        check_choice("on_error", on_error, ("strict", "skip"))
        self.on_error = on_error
        self.seed = seed
        self._fully_initialized: bool = False
        self._metainfo: dict[str, Any] = {}
        # In shared memory: workers that stay alive between epochs see the new epoch and each other's skipped samples.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._is_skipped = torch.zeros(0, dtype=torch.bool)
        super().__init__(
            ann_file=str(ann_file),
            metainfo=dict(metainfo),
            data_root=str(data_root),
            indices=indices,
            pipeline=build_transforms(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    # ------------------------------------------------------------------------------------------------ the index

    @abstractmethod
    def _read_samples(self) -> tuple[dict[str, Any], PackedSamples]:
        """The index's metainfo and samples; what else a subclass needs of them it keeps."""

    @abstractmethod
    def _token_at(self, position: int) -> str:
        """Name of the sample at a position of the index."""

    def _candidates(self) -> np.ndarray:
        """Positions in the index that may be items, in order; `indices` chooses among them."""
        return np.arange(len(self._samples))

    def full_init(self) -> None:
        """Read the index, once."""
        if self._fully_initialized:
            return
        metainfo, self._samples = self._read_samples()
        if not len(self._samples):
            raise DataError(
                "the index holds no sample; build it again with `perception data prepare`.",
                path=self.ann_file,
            )
        self._metainfo = {**metainfo, **self._metainfo}
        candidates = self._candidates()
        self._order = _select(candidates, self._indices)
        self._is_subset = len(np.unique(self._order)) < len(candidates)
        self._is_skipped = torch.zeros(len(self._samples), dtype=torch.bool).share_memory_()
        self._check_samples()
        self._fully_initialized = True

    def _check_samples(self) -> None:
        """What a subclass looks at when everything has been read; raises where items cannot be made."""

    @property
    def is_subset(self) -> bool:
        """Whether `indices` leaves samples out; metrics on a subset are not comparable."""
        self.full_init()
        return self._is_subset

    @property
    def sample_tokens(self) -> list[str]:
        """Token of each item."""
        self.full_init()
        return [self._token_at(int(position)) for position in self._order]

    def __len__(self) -> int:
        self.full_init()
        return len(self._order)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The index's entry of an item."""
        self.full_init()
        return self._samples[int(self._order[idx])]

    # ------------------------------------------------------------------------------------------------ items

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that randomness is drawn for; reaches running workers too."""
        self._epoch.fill_(epoch)

    def _generator(self, position: int) -> np.random.Generator:
        return np.random.default_rng(stable_seed(self.seed, int(self._epoch), position))

    @property
    def num_skipped(self) -> int:
        """Number of defective samples replaced so far, in all worker processes."""
        return int(self._is_skipped.sum())

    def __getitem__(self, idx: int) -> Any:
        """One item.

        Raises:
            DataError: the sample is defective and may not be skipped.
        """
        return self._read_or_replace(idx)

    @abstractmethod
    def prepare_data(self, idx: int, *, visit: int | None = None) -> Any:
        """Compose an item and run the pipeline on it; `visit` is what randomness is drawn from besides the seed."""

    def _substitutes(self, idx: int) -> Iterator[int]:
        """Items that may stand in for a defective one, the first choice first."""
        return ((idx + offset) % len(self) for offset in range(1, len(self)))

    def _read_or_replace(self, idx: int, *, visit: int | None = None) -> Any:
        if not 0 <= idx < len(self):
            raise IndexError(f"index {idx} is out of range for {len(self)} items.")
        candidate, substitutes = idx, self._substitutes(idx)
        while True:
            try:
                return self.prepare_data(candidate, visit=visit)
            except DataError as error:
                if self.on_error == "strict" or self.test_mode:
                    raise
                self._count_skipped(int(self._order[candidate]), error)
            following = next(substitutes, None)
            if following is None:
                raise DataError(
                    "every sample like it is defective, so that none can stand in for it.",
                    sample_token=self._token_at(int(self._order[idx])),
                    path=self.ann_file,
                )
            candidate = following

    def _count_skipped(self, position: int, error: DataError) -> None:
        if self._is_skipped[position]:
            return
        self._is_skipped[position] = True
        allowed = allowed_defects(len(self._order))
        if self.num_skipped > allowed:
            raise DataError(
                f"{self.num_skipped} defective samples, more than the {allowed} that on_error='skip' allows for "
                f"{len(self._order)}; repair the data (`perception data verify` lists the defects). The latest: "
                f"{error}",
                sample_token=self._token_at(position),
                path=error.path,
            ) from error
        get_logger(__name__).warning("sample replaced by the next one: %s", error)


def allowed_defects(num_samples: int) -> int:
    """How many samples of so many may be left out as defective.

    Example:
        >>> allowed_defects(900), allowed_defects(70_000)
        (1, 70)
    """
    return max(1, int(MAX_SKIPPED_FRACTION * num_samples))


def build_transforms(pipeline: Sequence[Mapping[str, Any] | Callable]) -> list[Callable]:
    """Transforms from configs; what is callable already stays as it is."""
    return [
        TRANSFORMS.build(dict(transform)) if isinstance(transform, Mapping) else transform
        for transform in pipeline
    ]


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value that is not among those allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {tuple(allowed)}, got {value!r}.{did_you_mean(value, list(allowed))}"
        )


def _select(order: np.ndarray, indices: int | Sequence[int] | None) -> np.ndarray:
    if indices is None:
        return order
    if isinstance(indices, int):
        selected = order[:indices] if indices >= 0 else order[indices:]
    else:
        selected = order[np.asarray(indices, dtype=np.int64)]
    if not len(selected):
        raise ValueError(f"indices={indices} selects no sample of {len(order)}.")
    return selected
