"""What the optimiser wrapper needs to know of the current step when it has to explain a failure."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perception.engine.norm_statistics import NormStatistics
from perception.engine.rng import get_rng_state, set_rng_state


@dataclass(kw_only=True)
class StepContext:
    """One training step's inputs, enough to run its forward again exactly.

    Attributes:
        step: number of this step, from 1.
        model: the bare model, not its distributed wrapper.
        data_batch: what the loader gave, before the preprocessor.
        rng_state: the generators before the step's forward.
        statistics: running statistics before the step's forward.
        scopes: what makes the context of each of the step's forwards.
    """

    step: int
    model: nn.Module
    data_batch: Any
    rng_state: dict[str, Any] = field(default_factory=get_rng_state)
    statistics: NormStatistics | None = None
    scopes: Sequence[Callable[[], AbstractContextManager]] = (nullcontext,)

    def __post_init__(self) -> None:
        if self.statistics is None:
            self.statistics = NormStatistics(self.model)

    def restore_statistics(self) -> None:
        """Undo what the forward did to running statistics."""
        assert self.statistics is not None  # set in __post_init__
        self.statistics.restore()

    def sample_tokens(self) -> list[str]:
        """Tokens or frame names of the batch's samples, as far as the data samples carry them."""
        samples = self.data_batch.get("data_samples") if isinstance(self.data_batch, Mapping) else None
        if not isinstance(samples, Sequence):
            return []
        return [str(token) for sample in samples if (token := _token(sample)) is not None]

    def blame_gradients(self, parameters: Mapping[str, Tensor], autocast: Any) -> dict[str, list[str]]:
        """Run the forwards again and find which task gives which parameter a non-finite gradient.

        Args:
            parameters: name → parameter, those whose gradient is not finite.
            autocast: context manager under which the step ran.

        Returns:
            task → parameter names; empty if no task alone does it on this rank.
        """
        before = get_rng_state()
        set_rng_state(self.rng_state)
        blamed: dict[str, list[str]] = {}
        try:
            for scope in self.scopes:
                with torch.enable_grad(), scope():
                    with autocast:
                        data = self.model.data_preprocessor(self.data_batch, True)
                        losses = self.model(**data, mode="loss")
                    task_losses, _ = self.model.parse_losses(losses)
                    for task, loss in task_losses.items():
                        names = _non_finite_gradients(loss, parameters)
                        if names:
                            blamed[task] = names
        finally:
            self.restore_statistics()
            set_rng_state(before)
        return blamed


def _non_finite_gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> list[str]:
    gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return [
        name
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and not bool(torch.isfinite(gradient).all())
    ]


def _token(sample: Any) -> str | None:
    named = sample if isinstance(sample, Mapping) else getattr(sample, "metainfo", {})
    return named.get("sample_token", named.get("frame_name"))
