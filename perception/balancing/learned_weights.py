"""Loss weights with one learned number per task: uncertainty weighting and IMTL-L."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchjd.scalarization import IMTLL, UW, Scalarizer

from perception.balancing.component import Component, Setting
from perception.balancing.loss_weighting import LossWeighting, scalarizer_weights
from perception.balancing.masked_adam import MaskedAdam


class LearnedWeights(LossWeighting):
    """A scalarizer of TorchJD with one parameter per task, learned beside the model by an Adam of its own.

    *Deviation*: in the papers the parameters are in the model's optimiser. Here they are in the balancer, so that they
    neither enter clipping nor weight decay and absent tasks rest. Parameters change once per optimiser step.

    Args:
        lr: learning rate of the parameters.

    Raises:
        ValueError: a negative `lr`.
    """

    scalarizer: ClassVar[type[Scalarizer]]
    parameter_name: ClassVar[str]
    state_names = ("parameters", "gradients", "num_seen")

    def __init__(self, *, lr: float = 0.01) -> None:
        self.adam = MaskedAdam(lr=lr)
        self.parameters = self.gradients = self.num_seen = torch.zeros(0, dtype=torch.float64)

    def parts(self) -> tuple[Component, ...]:
        """The Adam."""
        return (self.adam,)

    def setup(self, setting: Setting) -> None:
        """One parameter of 0 for each task."""
        super().setup(setting)
        zeros = torch.zeros(3, len(setting.task_names), dtype=torch.float64)
        self.parameters, self.gradients, self.num_seen = zeros

    def end_step(self) -> None:
        """Let the parameters of the tasks seen since the last step take theirs."""
        super().end_step()
        active = self.num_seen > 0
        self.parameters = self.adam.stepped(
            self.parameters, self.gradients / self.num_seen.clamp(min=1), active
        )
        self.gradients, self.num_seen = torch.zeros_like(self.gradients), torch.zeros_like(self.num_seen)

    def report(self) -> dict[str, Any]:
        """The learned parameters."""
        return {self.parameter_name: dict(zip(self.task_names, self.parameters.tolist(), strict=True))}

    def observe(self, losses: Tensor, present: Tensor, weights: Tensor, gram: Tensor | None) -> None:
        """Add up the gradient of the parameters of the present tasks."""
        task_idx = present.nonzero().flatten().cpu()
        scalarizer = self._scalarizer(task_idx)
        with torch.enable_grad():
            value = scalarizer(losses.detach().double().cpu()[task_idx])
            (gradient,) = torch.autograd.grad(value, tuple(scalarizer.parameters()))
        added, seen = self.gradients.clone(), self.num_seen.clone()
        added[task_idx] += gradient
        seen[task_idx] += 1
        self.gradients, self.num_seen = added, seen

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        return scalarizer_weights(self._scalarizer(task_idx), losses)

    def _scalarizer(self, task_idx: Tensor) -> Scalarizer:
        scalarizer = self.scalarizer(len(task_idx)).double()
        scalarizer.load_state_dict({self.parameter_name: self.parameters[task_idx]})
        return scalarizer


class UncertaintyWeights(LearnedWeights):
    """exp(-s_t) / 2 with a learned log-variance s_t, regularised by s_t / 2.

    *Source*: Kendall et al. 2018, TorchJD's `UW`; s starts at 0, where every weight is 1/2.
    """

    scalarizer = UW
    parameter_name = "log_var"


class IMTLLossWeights(LearnedWeights):
    """exp(s_t) with a learned scale s_t, regularised by -s_t, so that scaled losses tend to 1.

    *Source*: IMTL-L of Liu et al. 2021, TorchJD's `IMTLL`; s starts at 0, where every weight is 1.
    """

    scalarizer = IMTLL
    parameter_name = "log_scale"
