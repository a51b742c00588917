"""Fast adaptive multi-task optimisation (FAMO)."""

from typing import Any

import torch
from torch import Tensor
from torchjd.scalarization import FAMO

from perception.balancing.component import Component, Setting
from perception.balancing.loss_weighting import LossWeighting, scalarizer_weights
from perception.balancing.masked_adam import MaskedAdam

_EPS = 1e-8


class FAMOWeights(LossWeighting):
    """Weights under which all logarithms of the losses fall alike, learned from the losses alone.

    *Source*: Liu et al. 2023, Algorithm 1; weights by TorchJD's `FAMO`, the Adam on its logits ours, so that it is
    saved and absent tasks rest. *Deviation*: the paper computes the losses of the same batch again after the update;
    here the next batch's losses stand in for them, which costs no second forward and adds the noise between batches.
    For a task that batches lacked since, its next losses do, the fall divided by the number of updates in between; a
    task that is weighed apart from others, as the groups of connection strength are, is compared with its own group.
    The weights sum to 1 (convention "mean").

    Args:
        lr: of the logits.
        weight_decay: of the logits.

    Raises:
        ValueError: a negative argument.
    """

    convention = "mean"
    state_names = ("logits", "before", "num_updates")

    def __init__(self, *, lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        self.adam = MaskedAdam(lr=lr, weight_decay=weight_decay)
        self.logits = self.before = self.num_updates = torch.zeros(0, dtype=torch.float64)

    def parts(self) -> tuple[Component, ...]:
        """The Adam."""
        return (self.adam,)

    def setup(self, setting: Setting) -> None:
        """Logits of 0."""
        super().setup(setting)
        self.logits = torch.zeros(len(setting.task_names), dtype=torch.float64)
        self.before = torch.full_like(self.logits, torch.nan)
        self.num_updates = torch.zeros_like(self.logits)  # since a task was weighed

    def end_step(self) -> None:
        """Each task's next losses are those after an update."""
        super().end_step()
        self.num_updates = self.num_updates + 1

    def report(self) -> dict[str, Any]:
        """The logits."""
        return {"logits": dict(zip(self.task_names, self.logits.tolist(), strict=True))}

    def observe(self, losses: Tensor, present: Tensor, weights: Tensor, gram: Tensor | None) -> None:
        """Keep the losses before the update; an absent task's are those of its last batch."""
        self.before = torch.where(present.cpu(), losses.detach().double().cpu(), self.before)

    def _weights(self, losses: Tensor, task_idx: Tensor) -> Tensor:
        self._learn(losses, task_idx)
        scalarizer = FAMO(len(task_idx)).double()
        state = {"_w": self.logits[task_idx], "min_losses": torch.zeros(len(task_idx))}
        scalarizer.load_state_dict(state)
        return scalarizer_weights(scalarizer, losses.clamp(min=0))

    def _learn(self, losses: Tensor, task_idx: Tensor) -> None:
        is_due = (self.num_updates[task_idx] > 0) & ~self.before[task_idx].isnan()
        both, updates = task_idx[is_due], self.num_updates[task_idx[is_due]]
        self.num_updates = self.num_updates.index_fill(0, task_idx, 0.0)
        if not len(both):
            return
        fall = (self.before[both].clamp(min=0) + _EPS).log() - (losses[is_due].clamp(min=0) + _EPS).log()
        fall = fall / updates
        shares = torch.softmax(self.logits[both], 0)
        gradients, active = torch.zeros_like(self.logits), torch.zeros(len(self.logits), dtype=torch.bool)
        gradients[both] = shares * (fall - (shares * fall).sum())
        active[both] = True
        self.logits = self.adam.stepped(self.logits, gradients, active)
