"""A metric whose result does not depend on how the samples were spread over ranks.

MMEngine's `collect_results` interleaves the ranks' lists and cuts the tail: with shards of uneven length it
drops real samples and keeps padded ones. Here results are keyed by sample token, so order, padding and shard
sizes do not matter.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric

from perception.utils import get_logger, name_some

logger = get_logger("evaluation")


class GatheredMetric(BaseMetric):
    """Base of our metrics: one result per sample, gathered from all ranks by `sample_token`.

    A subclass turns one data sample into one JSON-like result (`process_sample`) and all results, sorted by
    token, into numbers (`compute_metrics`). It may name the samples it needs (`expected_tokens`), have another token
    than nuScenes' (`token_of`), and pass over samples that it has nothing to do with (`is_counted`).

    *Deviation* from MMEngine: `evaluate` is overridden. A sample seen twice (padding of a shard) counts once,
    the lowest rank's; a missing sample is an error unless `is_subset`; an error on the main rank is raised on
    every rank instead of leaving the others waiting.

    Args:
        subset: the metric is meant to see only a part of its split, as for a quick look.

    Example:
        >>> class Count(GatheredMetric):
        ...     def process_sample(self, sample): return 1
        ...     def compute_metrics(self, results): return {"count": sum(results.values())}
        >>> metric = Count()
        >>> metric.process(None, [{"sample_token": "a"}, {"sample_token": "b"}, {"sample_token": "a"}])
        >>> metric.evaluate(size=2)
        {'count': 2}
    """

    default_prefix = ""
    token_key = "sample_token"
    """Key of a data sample by which it is known."""

    keeps_sample_scores = False
    """Whether `evaluate` fills `sample_scores`; `perception test` asks for it, the validations of a training do not."""

    def __init__(self, *, subset: bool = False) -> None:
        # The empty prefix is deliberate (keys are NDS, mIoU, ...); MMEngine warns only about None.
        super().__init__(collect_device="cpu", prefix=None)
        self.is_subset = subset
        self.sample_scores: dict[str, dict[str, float]] = {}  # main rank only

    @abstractmethod
    def process_sample(self, sample: Mapping[str, Any]) -> Any:
        """Result of one sample; NumPy arrays and plain values only, since it travels between ranks."""

    @abstractmethod
    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        """Numbers from all results, keyed and sorted by sample token. Called on the main rank only."""

    def score_samples(self, results: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Token → scores of that sample alone, to find good and bad ones; called after `compute_metrics`.

        They are no parts of the whole split's scores: these are not means over samples.
        """
        return {}

    def expected_tokens(self) -> Iterable[str] | None:
        """Tokens that must all be present; None if only their number is known. Main rank only."""
        return None

    def token_of(self, sample: Mapping[str, Any]) -> str | None:
        """By what a sample is known; None if it does not say."""
        return sample.get(self.token_key, None)

    def is_counted(self, sample: Mapping[str, Any]) -> bool:
        """Whether a sample has a result at all; a metric of one task passes over frames without its labels."""
        return True

    def check_dataset(self, metainfo: Mapping[str, Any]) -> None:
        """Look, before a sample is predicted, whether the metric can score a dataset.

        Args:
            metainfo: the dataset's.

        Raises:
            ConfigError: the metric is set to something else than the dataset holds.
            DataError: what the metric reads is not there.
        """

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Append one (token, result) pair per data sample.

        Raises:
            ValueError: a data sample does not say by what it is known.
        """
        for sample in data_samples:
            token = self.token_of(sample)
            if not token:
                raise ValueError(
                    f"{type(self).__name__}: a data sample carries no {self.token_key} (found "
                    f"{sorted(sample.keys())}). Add {self.token_key!r} to the packing transform's meta_keys."
                )
            if self.is_counted(sample):
                self.results.append((token, self.process_sample(sample)))

    def evaluate(self, size: int) -> dict[str, Any]:
        """Gather, check for missing samples, compute on the main rank, broadcast.

        Args:
            size: number of samples of the evaluated dataset.

        Raises:
            ValueError: samples are missing and the metric is not told that it sees a subset.
        """
        shards = all_gather_object(list(self.results))
        self.results.clear()
        error: Exception | None = None
        message: list[Any] = [None, None]
        if is_main_process():
            try:
                message[0] = self._evaluate_gathered(shards, size)
            except Exception as caught:  # noqa: BLE001 - raised again below, on every rank
                error = caught
                message[1] = f"{type(caught).__name__}: {caught}"
        broadcast_object_list(message)
        if error is not None:
            raise error
        if message[1] is not None:
            raise RuntimeError(f"{type(self).__name__} failed on the main rank: {message[1]}")
        return message[0]

    def _evaluate_gathered(self, shards: Sequence[Sequence[tuple[str, Any]]], size: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        num_seen = 0
        for shard in shards:
            num_seen += len(shard)
            for token, result in shard:
                merged.setdefault(token, result)
        if num_seen > len(merged):
            logger.debug("%s: %d repeated samples dropped.", type(self).__name__, num_seen - len(merged))
        if not self.is_subset:
            self._check_complete(merged, size)
        results = {token: merged[token] for token in sorted(merged)}
        metrics = self.compute_metrics(results)
        if self.keeps_sample_scores:
            self.sample_scores = self.score_samples(results)
        return metrics

    def _check_complete(self, merged: Mapping[str, Any], size: int) -> None:
        expected = self.expected_tokens()
        if expected is None:
            missing, total = [], size
            num_missing = max(size - len(merged), 0)
        else:
            expected = set(expected)
            missing, total = sorted(expected - merged.keys()), len(expected)
            num_missing = len(missing)
            unknown = sorted(merged.keys() - expected)
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: {len(unknown)} evaluated samples do not belong to the split: "
                    f"{name_some(unknown)}. Evaluate the split that the metric is set to."
                )
        if num_missing:
            names = f": {name_some(missing)}" if missing else ""
            raise ValueError(
                f"{type(self).__name__}: {num_missing} of {total} samples have no result{names}. "
                "Evaluate the whole split, or set subset=True for a quick look that is not comparable."
            )
