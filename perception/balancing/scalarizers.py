"""Loss weights of TorchJD's scalarizers without learned state: RLW, DWA and STCH."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchjd.scalarization import DWA, STCH, Random

from perception.balancing._checks import check_range, check_task_names
from perception.balancing._random import global_draws_from
from perception.balancing.component import Setting
from perception.balancing.loss_weighting import LossWeighting, scalarizer_weights


class RandomWeights(LossWeighting):
    """Random loss weighting: softmax of normal draws, new for each batch.

    *Source*: Lin et al. 2022, TorchJD's `Random`; drawn from the balancer's generator. The weights sum to 1.
    """

    convention = "mean"

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        with global_draws_from(self.generator):
            return scalarizer_weights(Random(), losses)


class DynamicWeightAverage(LossWeighting):
    """T softmax(r / temperature) with r the ratio of the last two epochs' mean losses.

    *Source*: Liu et al. 2019, TorchJD's `DWA`; even in the first two epochs. A task without two known means has r = 1.

    Args:
        temperature: above 0; 2 in the paper.

    Raises:
        ValueError: a temperature that is not above 0.
    """

    state_names = ("older", "newer")

    def __init__(self, *, temperature: float = 2.0) -> None:
        check_range("temperature", temperature, 0.0, is_open=True)
        self.temperature = temperature
        self.older: Tensor | None = None
        self.newer: Tensor | None = None

    def end_epoch(self, mean_losses: Tensor) -> None:
        """Take (T,) means of the epoch that ended."""
        self.older, self.newer = self.newer, mean_losses.double().cpu()

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        if self.older is None or self.newer is None:
            return torch.ones_like(losses)
        older, newer = self.older[task_idx], self.newer[task_idx]
        is_known = (older > 0) & newer.isfinite()
        scalarizer = DWA(temperature=self.temperature)
        for means in (older, newer):
            scalarizer(torch.where(is_known, means, torch.ones_like(means)))
            scalarizer.step()
        return scalarizer_weights(scalarizer, losses)


class SmoothTchebycheffWeights(LossWeighting):
    """softmax(preference (L - reference) / mu): a smooth maximum of the losses.

    *Source*: Lin et al. 2024, TorchJD's `STCH` with preferences of 1 where none are given, so that the weights sum
    to 1. Losses should be of one size: give `scales` to the balancer.

    Args:
        mu: smoothing, above 0.
        preferences: task → factor; a task left out has 1.
        reference: task → ideal loss; a task left out has 0.

    Raises:
        ValueError: `mu` is not above 0; at `setup`, an unknown task.
    """

    convention = "mean"

    def __init__(
        self,
        *,
        mu: float = 1.0,
        preferences: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        check_range("mu", mu, 0.0, is_open=True)
        self.mu = mu
        self.preferences = dict(preferences or {})
        self.reference = dict(reference or {})

    def setup(self, setting: Setting) -> None:
        """Check the names."""
        super().setup(setting)
        check_task_names(self.preferences, self.task_names, "preferences")
        check_task_names(self.reference, self.task_names, "reference")

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        names = [self.task_names[int(task)] for task in task_idx]
        preferences = torch.tensor([self.preferences.get(name, 1.0) for name in names], dtype=torch.float64)
        reference = torch.tensor([self.reference.get(name, 0.0) for name in names], dtype=torch.float64)
        return scalarizer_weights(STCH(self.mu, weights=preferences, reference=reference), losses)
