"""RotoGrad as a balancer: a rotation of the shared features in front of each head, trained beside the model."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing._checks import check_heads_read_apart
from perception.balancing.component import Convention
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.multi_task_balancer import MultiTaskBalancer
from perception.balancing.rotograd import RotoGrad, check_options
from perception.balancing.shared_features import SharedFeatures
from perception.balancing.step_report import describe_gram


class RotoGradBalancer(MultiTaskBalancer):
    """Training with `RotoGrad`: each head reads the shared features through its own rotation.

    *Source*: `RotoGrad`. Its tasks are the model's heads, `task_groups` (for BEVFormer `det` and `seg`), or single
    tasks where the model declares none: a head has one input, so its tasks share a rotation. With w the loss weights,
    L_k = Σ_t w_t L_t over the present tasks of head k, and everything read off the graph:

    - what lies behind the shared features (the heads) is trained by Σ_k L_k;
    - what lies before them gets Σ_k c_k ∂L_k, c_k = C/‖g_k‖. Norms and rotations look at the rotated tensor alone, the
      first that the model passes to its `shared_features`. A loss that reaches the trunk around it, through another
      tensor or directly (BEVFormer's perspective head reads image features), has its head's c_k there too, so that a
      head's parts keep their proportions; 1 where its head sends nothing through the rotated tensor.

    Rotations move only after a step that the model's optimiser took, by an Adam of their own. They are weights of the
    model, so evaluation and prediction use them; the Adam's state, its rate, reference norms and step belong to this
    balancer's state. With accumulation each micro-batch has its own c_k, and reference norms and rotations take one
    step per update, from all of them.

    *Model*: `shared_features` (`SharedFeatures`), `shared_width` (d, length of the rotated tensor's last axis), and
    `rotations`, None by default; where it is not, head k reads `rotations.rotate(features, k)`. What must not be
    rotated (a history of BEV features) is kept as it was before.

    Args:
        lr: the rotations' learning rate at the start; its own schedule, not the model's.
        decay: factor of that rate per epoch.
        burn_in: update, from 0, whose norms replace the first one's as reference.
        weighting: loss weights, by default 1.
        scales: as in `MultiTaskBalancer`.
        convention: as in `MultiTaskBalancer`.

    Raises:
        ValueError: an option outside its range, a weighting that compares gradients; at `prepare` and `adopt`, a model
            without what is listed above, or with less than two heads.

    Attributes:
        groups: head → its tasks; known from `prepare` or `adopt` on.

    Example:
        >>> RotoGradBalancer(lr=1e-3, scales={"seg": 2.0}).rotates_features
        True
    """

    changes_model = True
    rotates_features = True

    def __init__(
        self,
        *,
        lr: float = 1e-4,
        decay: float = 0.99,
        burn_in: int = 20,
        weighting: LossWeighting | None = None,
        scales: Mapping[str, float] | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(weighting=weighting, scales=scales, convention=convention)
        check_options(lr=lr, decay=decay, burn_in=burn_in)
        if self.needs_gram:
            raise ValueError(
                f"{type(self.weighting).__name__} needs the Gram matrix of the task gradients, but RotoGrad only takes "
                "gradients of the shared features; choose another weighting"
            )
        self.options = {"lr": lr, "decay": decay, "burn_in": burn_in}
        self.groups: dict[str, tuple[str, ...]] = {}
        self._rotations: RotoGrad | None = None
        self._held: tuple[Tensor, Tensor] | None = None
        self._seen: dict[str, Tensor] = {}

    @property
    def rotations(self) -> RotoGrad:
        """The model's module.

        Raises:
            RuntimeError: no model was adopted.
        """
        if self._rotations is None:
            raise RuntimeError("RotoGrad knows no model yet: call adopt(prepare(model)) first")
        return self._rotations

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy of the model with rotations, all of them the identity."""
        groups = _groups_of(model)
        check_heads_read_apart(model, "RotoGrad")
        if model.rotations is not None:
            raise ValueError(
                f"{type(model).__name__} has rotations already; RotoGrad adds them to a plain model"
            )
        changed = copy.deepcopy(model)
        rotations = RotoGrad(tasks=tuple(groups), size=int(model.shared_width), **self.options)  # type: ignore[arg-type]
        like = next(model.parameters())
        changed.rotations = rotations.to(like.device, torch.promote_types(like.dtype, torch.float32))
        if changed.rotations is not rotations:
            raise ValueError(
                f"{type(model).__name__} does not give back the rotations that were put into it. Set "
                "`self.rotations = None` in its __init__; an attribute of the class hides the module"
            )
        return changed

    def adopt(self, model: nn.Module) -> None:
        """Take the rotations of a model that `prepare` of an equal instance made."""
        groups = _groups_of(model)
        if not isinstance(model.rotations, RotoGrad) or model.rotations.tasks != tuple(groups):
            raise ValueError(
                f"{type(model).__name__} has no rotations for {list(groups)}; RotoGrad trains the model that its "
                "`prepare` returns"
            )
        self.groups, self._rotations = groups, model.rotations

    def coefficients(self, gram: Tensor) -> Tensor:
        """(G,) factors of the heads' gradients in the trunk; 0 for a head that sends nothing through the features.

        Args:
            gram: (G, G) inner products of the global batch's gradients with respect to the features.
        """
        factors = self.rotations.coefficients(gram.diagonal())
        self._seen = {"gram": gram, "factors": factors}
        return factors

    def hold(self, squared_norms: Tensor, products: Tensor) -> None:
        """Keep what the rotations learn from an update until it was taken.

        Args:
            squared_norms: (G,) of the global batch, added up over the update.
            products: (G, d, d), what `RotoGrad.products` gave, likewise.
        """
        self._held = (squared_norms, products)

    def end_step(self) -> None:
        """Count an optimiser step that was taken, and let the rotations take theirs."""
        super().end_step()
        if self._held is not None:
            self.rotations.step(*self._held)
            self._held = None

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """As the base class; lowers the rotations' learning rate."""
        super().end_epoch(mean_losses)
        if self._rotations is not None:
            self._rotations.end_epoch()

    def report(self) -> dict[str, Any]:
        """As the base class; with coefficients those of the trunk, and by head what was seen at the features.

        - `grad_norms`, `cosines`, `conflict_share`: of the heads' gradients with respect to the features, turned back,
        - `RotoGrad`: `angle` of each rotation, degrees, before the update; `lr` of the rotations.
        """
        report = super().report()
        if not self._seen or self._rotations is None:
            return report
        names = tuple(self.groups)
        factors = dict(zip(names, self._seen["factors"].tolist(), strict=True))
        heads = {task: head for head, tasks in self.groups.items() for task in tasks}
        if "coefficients" in report:
            report["coefficients"] = {
                task: value * (factors[heads[task]] or 1.0) for task, value in report["coefficients"].items()
            }
        present = self._seen["factors"] > 0
        report |= describe_gram(names, self._seen["gram"], present, torch.ones(len(names)))
        report["RotoGrad"] = {
            "angle": {head: self._rotations.angle(head) for head in names},
            "lr": self._rotations.optimizer.param_groups[0]["lr"],
        }
        return report

    def state_dict(self) -> dict[str, Any]:
        """The base class's, and what the rotations' training needs beside the rotations."""
        own = {} if self._rotations is None else {"rotograd": self._rotations.training_state()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; after `adopt` and `setup`.

        Raises:
            ValueError: the state belongs to another method, or to other heads.
        """
        if self._rotations is not None and "rotograd" not in state:
            raise ValueError(
                f"the checkpoint's balancer state has {sorted(state)}, which lacks RotoGrad's. Resume with the "
                "balancer that wrote it"
            )
        super().load_state_dict({key: value for key, value in state.items() if key != "rotograd"})
        if self._rotations is not None:
            self._rotations.load_training_state(state["rotograd"])


def _groups_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    missing = [name for name in ("shared_width", "rotations") if not hasattr(model, name)]
    if not isinstance(getattr(model, "shared_features", None), SharedFeatures):
        missing.append("shared_features")
    if missing:
        raise ValueError(
            f"RotoGrad rotates what the heads of a model read, but {type(model).__name__} has no {', '.join(missing)}. "
            "Use a model of perception.models, or give yours what RotoGradBalancer's docstring lists"
        )
    declared = getattr(model, "task_groups", None) or {
        task: (task,) for task in getattr(model, "task_names", ())
    }
    if len(declared) < 2:
        raise ValueError(
            f"RotoGrad compares heads, so it needs at least two; {type(model).__name__} has {list(declared)}. Train "
            "one head by balancer='sum'"
        )
    return {head: tuple(tasks) for head, tasks in declared.items()}
