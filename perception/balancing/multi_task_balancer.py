"""Composition: any loss weighting, then any chain of combinations."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perception.balancing._checks import check_positive, check_task_names
from perception.balancing.balancer import Balancer
from perception.balancing.component import Component, Convention, Setting
from perception.balancing.geometric_mean import GeometricMean
from perception.balancing.gram_weighting import GramWeighting
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.step_report import describe_step
from perception.utils import stable_seed


class MultiTaskBalancer(Balancer):
    """Weighs the losses by `weighting`, then applies the stages of `combination` one after the other.

    With D the product of what came before, a stage sees the Gram matrix D G D of the scaled gradients of the present
    tasks, and its coefficients multiply D; no stage is the plain sum. `GeometricMean` can only be the first; the loss
    weights are then its exponents and are not multiplied in. A single present task gets c = 1.

    Between stages coefficients are in the sum convention (even tasks have 1), so that a stage's own factor 1/T enters
    no other. The result is in `convention`; by default "mean" if the weighting or any stage has it in its paper.

    Args:
        weighting: by default weights of 1.
        combination: at most one `GeometricMean`, then Gram methods.
        scales: task → constant factor of its loss, before all else; a task left out has 1.
        convention: "sum" or "mean" (divided by the number of present tasks).
        scale_heads: as `Balancer.scale_heads`; by default true if there is no Gram method or any has it in its paper.

    Raises:
        ValueError: an unknown convention, a misplaced geometric mean or one of weights that learn from the norms of the
            weighted gradients (GradNorm), a scale that is not above 0.

    Example:
        >>> from perception.balancing.pcgrad import PCGradWeighting
        >>> balancer = MultiTaskBalancer(combination=[PCGradWeighting()], convention="mean")
        >>> balancer.setup(("det", "seg"), max_epochs=1, total_steps=10, seed=0)
        >>> present = torch.tensor([True, True])
        >>> balancer.combine(torch.ones(2), present, torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
        tensor([0.7500, 0.7500])
    """

    def __init__(
        self,
        *,
        weighting: LossWeighting | None = None,
        combination: Sequence[GeometricMean | GramWeighting] = (),
        scales: Mapping[str, float] | None = None,
        convention: Convention | None = None,
        scale_heads: bool | None = None,
    ) -> None:
        if convention not in (None, "sum", "mean"):
            raise ValueError(
                f"convention is {convention!r}; allowed: 'sum', 'mean', or None for the paper's own"
            )
        if any(isinstance(stage, GeometricMean) for stage in combination[1:]):
            raise ValueError(
                "the geometric mean acts on losses, so it must be the first stage of a combination"
            )
        check_positive(scales or {}, "the scale")
        self.weighting = weighting or LossWeighting()
        self.combination = tuple(combination)
        self.scales = dict(scales or {})
        if self.is_geometric and self.weighting.needs_gram:
            raise ValueError(
                f"{type(self.weighting).__name__} learns from the norms of the gradients that its weights multiply, "
                "but with a geometric mean they are exponents and multiply none: it would never see what they do, and "
                "run to a limit. Use it without the geometric mean, or another weighting with it"
            )
        own = [self.weighting.convention, *(stage.convention for stage in self.combination)]
        self.convention: Convention = convention or ("mean" if "mean" in own else "sum")
        stages = [stage for stage in self.combination if isinstance(stage, GramWeighting)]
        self.scale_heads = any(stage.scale_heads for stage in stages) if stages else True
        if scale_heads is not None:
            self.scale_heads = scale_heads
        self.needs_gram = bool(stages) or self.weighting.needs_gram
        self.task_names: tuple[str, ...] = ()
        self.generator = torch.Generator()
        self._last: dict[str, Tensor] = {}
        self._has_combined = False

    @property
    def components(self) -> tuple[Component, ...]:
        """The weighting and the stages."""
        return (self.weighting, *self.combination)

    @property
    def is_geometric(self) -> bool:
        """Whether the loss weights are the exponents of a geometric mean."""
        return bool(self.combination) and isinstance(self.combination[0], GeometricMean)

    def setup(self, task_names: Sequence[str], *, max_epochs: int, total_steps: int, seed: int) -> None:
        """Learn the run, check every argument, seed the generator."""
        self.task_names = tuple(task_names)
        check_task_names(self.scales, self.task_names, "scales")
        self.generator.manual_seed(stable_seed(seed, "balancing"))
        setting = Setting(
            task_names=self.task_names,
            max_epochs=max_epochs,
            total_steps=total_steps,
            generator=self.generator,
        )
        for component in self.components:
            component.setup(setting)

    def check_directions(self, lower: Collection[str]) -> None:
        """See the base class."""
        for component in self.components:
            component.check_directions(lower)

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1."""
        for component in self.components:
            component.begin_epoch(epoch)

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """End an epoch; task → mean of its unscaled global losses."""
        check_task_names(mean_losses, self.task_names, "the mean losses")
        means = [mean_losses.get(name, math.nan) * self.scales.get(name, 1.0) for name in self.task_names]
        for component in self.components:
            component.end_epoch(torch.tensor(means, dtype=torch.float64))

    def update_kpis(self, kpis: Mapping[str, float]) -> None:
        """Take task → validation score."""
        for component in self.components:
            component.update_kpis(kpis)

    def end_step(self) -> None:
        """Count an optimiser step."""
        for component in self.components:
            component.end_step()

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """Loss weights times `scales`, (T,); only `scales` with a geometric mean."""
        scales = self._scales(len(losses))
        weights = self.weighting.weights(losses.detach().double().cpu() * scales, present)
        self._last = {"weights": weights, "present": present.cpu()}
        self._has_combined = False
        return (scales if self.is_geometric else weights * scales).to(losses)

    def combine(self, losses: Tensor, present: Tensor, gram: Tensor | None) -> Tensor:
        """Coefficients (T,) of the weighted gradients; 0 for absent tasks."""
        num_present = int(present.sum())
        values, mask = losses.detach().double().cpu(), present.cpu()
        matrix = None if gram is None else gram.detach().to("cpu", torch.float64)
        if self.needs_gram and matrix is None:
            raise ValueError(f"{self} needs the Gram matrix of the weighted task gradients")
        weights, multiplied = self._observe(values, mask, matrix)
        factors = mask.double()
        self._has_combined = num_present > 1
        for stage in self.combination if self._has_combined else ():
            if isinstance(stage, GramWeighting):
                assert matrix is not None
                factors = (
                    factors
                    * stage.masked(factors[:, None] * matrix * factors, mask)
                    * _even(stage, num_present)
                )
            else:
                factors[mask] = stage.coefficients(values[mask], weights[mask]) * num_present
        # Weights that sum to 1 already carry the 1/T of the mean.
        has_share = self.weighting.convention == "mean" and not self.is_geometric
        factors = factors * float(max(num_present, 1)) ** (int(has_share) - int(self.convention == "mean"))
        self._last = {"weights": weights, "multiplied": multiplied, "coefficients": factors, "present": mask}
        if matrix is not None:
            self._last["gram"] = matrix
        return factors.to(losses)

    def reuse(self, losses: Tensor, present: Tensor) -> None:
        """Let the weighting learn from the losses; one that needs the Gram matrix rests."""
        if not self.weighting.needs_gram:
            self._observe(losses.detach().double().cpu(), present.cpu(), None)

    def report(self) -> dict[str, Any]:
        """What the last step did: see `describe_step`, and each component's own report by its class name.

        Where the losses were only weighed, or one task alone was present, the stages did nothing and report nothing.
        """
        report = describe_step(self.task_names, self._scales(len(self.task_names)), self._last)
        for component in self.components if self._has_combined else (self.weighting,):
            for part in (component, *component.parts()):
                found = part.report()
                if found:
                    report[type(part).__name__] = found
        return report

    def state_dict(self) -> dict[str, Any]:
        """The generator and each component's state."""
        return {
            "generator": self.generator.get_state(),
            "components": [component.save_state() for component in self.components],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; after `setup`."""
        if set(state) != {"generator", "components"} or len(state["components"]) != len(self.components):
            raise ValueError(
                f"the checkpoint's balancer state has {sorted(state)}, which is not that of {self}. "
                "Resume with the balancer that wrote it"
            )
        for component, component_state in zip(self.components, state["components"], strict=True):
            component.load_state(component_state)
        self.generator.set_state(state["generator"].cpu())

    def __repr__(self) -> str:
        names = [type(component).__name__ for component in self.components]
        return f"{type(self).__name__}({' -> '.join(names)}, convention={self.convention!r})"

    def _observe(self, values: Tensor, mask: Tensor, matrix: Tensor | None) -> tuple[Tensor, Tensor]:
        """Show the step to the weighting; its weights (T,), and those that multiply losses and gradients."""
        weights = self._last.get("weights", torch.ones_like(values))
        multiplied = torch.ones_like(values) if self.is_geometric else weights
        safe = torch.where(multiplied > 0, multiplied, torch.ones_like(multiplied))
        self.weighting.observe(values / safe, mask, safe, matrix)
        return weights, multiplied

    def _scales(self, num_tasks: int) -> Tensor:
        values = [self.scales.get(name, 1.0) for name in self.task_names] or [1.0] * num_tasks
        return torch.tensor(values, dtype=torch.float64)


def _even(stage: GramWeighting, num_present: int) -> int:
    return num_present if stage.convention == "mean" else 1
