"""Connection strength: which task each shared channel serves, and training that learns and keeps this priority."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from perception.balancing._connection_checks import check_connections, check_groups, check_norms
from perception.balancing.channel_strength import input_gain, layer_strength, norm_gain, top_tasks
from perception.balancing.component import Convention
from perception.balancing.connections import ATTENTION, Connection, ConnectionTrace
from perception.balancing.group_projection import GroupProjection
from perception.balancing.loss_weighting import LossWeighting
from perception.balancing.multi_task_balancer import MultiTaskBalancer
from perception.balancing.task_norms import convert_task_norms
from perception.utils import stable_seed

Phase = Literal["sequential", "grouped"]
Phases = Literal["mixed", "sequential", "grouped"]

_SUMMED = ("*.sampling_offsets", "*.attention_weights")


class ConnectionStrength(MultiTaskBalancer):
    """Task-specific norms, and per epoch either one update per task or a projection per layer and channel group.

    *Source*: Jeong and Yoon, Quantifying Task Priority for Multi-Task Optimization (CVPR 2024), Eqs. 4–7 and 10,
    Algorithm 1. "Randomly choose P ~ U(0, 1)" per epoch; "if P > e/E" phase 1, else phase 2, e counting from 1.

    - Phase 1, `sequential` (Eq. 9): for each entry of `plan` in turn, on the same batch: forward under its norms,
      backward of its tasks' losses, optimiser step. One optimiser for all; gradients set to None between the steps,
      so that a step leaves other tasks' parameters and moments alone.
    - Phase 2, `grouped` (Eq. 10, lines 6–16): for each entry forward and backward, the gradients kept per entry;
      `project` (or `assign` and what it returns) makes one gradient of them; one step.

    This class declares phases and does the mathematics; a training loop runs it. Losses are weighted before either
    phase, by `weighting` and `scales`, each group's among themselves, as if the other groups were absent; `convention`
    divides by the number of the group's present tasks. *Deviations*: layer norms, linear layers and layers further from
    a norm have strengths too (`norm_gain` and `input_gain` derive the rules); a channel that no task leads alone is
    summed; strengths and groups are renewed at each update.

    *Config*: `balancer="connection_strength"` for a model that declares `task_groups` and `trunk_names`; else, or to
    change them, `balancer=dict(name="connection_strength", groups=dict(det=("cls", "box", "velocity"), seg=("seg",)),
    trunk=("img_backbone", "img_neck", "bev_encoder"))`. The trunk's norms must be trainable.

    Args:
        groups: name of each task of this method → the model's tasks that belong to it; by default the model's
            `task_groups`, or each task alone.
        trunk: submodules shared by all groups, whose norms become task-specific; by default the model's `trunk_names`;
            none means the whole model.
        phases: "mixed" as in the paper, or always the one phase (its Table 4).
        summed: patterns (as of a shell) of layers of the trunk that need no strength and get the plain sum; by default
            those that decide where deformable attention looks, and the model's `summed_layers` if it has some.
        attention: sibling layers of attention modules, values → output.
        weighting: loss weights, by default 1.
        scales: as in `MultiTaskBalancer`.
        convention: as in `MultiTaskBalancer`.

    Raises:
        ValueError: fewer than two groups, a task in two of them, unknown `phases`, a weighting that compares gradients;
            at `setup`, a task of the model in no group, or one that it doesn't have.

    Attributes:
        plan: per group its name and its tasks; what a training loop runs one after the other. Known from the start, or
            from `prepare`, `adopt` or `setup` on.
        tasks: the groups' names.

    Example:
        >>> balancer = ConnectionStrength(groups={"det": ("cls", "box"), "seg": ("seg",)})
        >>> balancer.setup(("cls", "box", "seg"), max_epochs=4, total_steps=40, seed=3)
        >>> [balancer.draw_phase(epoch) for epoch in (1, 2, 3, 4)]
        ['sequential', 'sequential', 'grouped', 'grouped']
        >>> balancer.plan
        (('det', ('cls', 'box')), ('seg', ('seg',)))
    """

    changes_model = True
    needs_task_forwards = True

    def __init__(
        self,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        trunk: Sequence[str] | None = None,
        phases: Phases = "mixed",
        summed: Sequence[str] | None = None,
        attention: Mapping[str, str] = ATTENTION,
        weighting: LossWeighting | None = None,
        scales: Mapping[str, float] | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(weighting=weighting, scales=scales, convention=convention)
        if self.weighting.needs_gram:
            raise ValueError(
                f"{type(self.weighting).__name__} compares the task gradients of one forward, of which connection "
                "strength has none; choose another weighting"
            )
        if phases not in get_args(Phases):
            raise ValueError(f"phases must be one of {list(get_args(Phases))}, got {phases!r}")
        self.plan = ()
        self.tasks: tuple[str, ...] = ()
        if groups is not None:
            self._group(groups)
        self.trunk = None if trunk is None else tuple(trunk)
        self.phases = phases
        self.summed = None if summed is None else tuple(summed)
        self.attention = dict(attention)
        self.epoch = 0
        self.phase: Phase = "grouped" if phases == "grouped" else "sequential"
        self.num_epochs = 0
        self.phase_generator = torch.Generator()
        self._connections: tuple[Connection, ...] | None = None
        self._record: dict[str, Any] = {}

    def setup(self, task_names: Sequence[str], *, max_epochs: int, total_steps: int, seed: int) -> None:
        """Learn the run, check the groups, seed the phases' generator; ranks share the seed, hence the phases."""
        super().setup(task_names, max_epochs=max_epochs, total_steps=total_steps, seed=seed)
        if not self.plan:
            self._group({task: (task,) for task in task_names})
        check_groups(dict(self.plan), task_names)
        self.num_epochs = max_epochs
        self.phase_generator.manual_seed(stable_seed(seed, "connection strength"))

    @property
    def steps_per_group(self) -> bool:
        """Whether this is the first phase."""
        return self.phase == "sequential"

    @property
    def projects_groups(self) -> bool:
        """Whether this is the second phase."""
        return self.phase == "grouped"

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1, and draw its phase."""
        super().begin_epoch(epoch)
        self._record = {}
        self.draw_phase(epoch)

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy of the model with task-specific norms in the trunk; before the optimiser is built.

        Raises:
            ValueError: groups that don't fit `model.task_names`, an unknown trunk, no norm, or one without trainable
                scale or running statistics.
        """
        self._declare(model)
        check_groups(dict(self.plan), getattr(model, "task_names", None))
        converted = convert_task_norms(model, self.tasks, under=self.trunk or ())
        check_norms(converted, self.tasks)
        return converted

    def adopt(self, model: nn.Module) -> None:
        """Take groups and trunk from a model that `prepare` of an equal instance made.

        Raises:
            ValueError: it has no task-specific norms, or those of other groups.
        """
        self._declare(model)
        check_norms(model, self.tasks)

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Find which norm each layer feeds during one training forward inside, under `use_task`; done once per run.

        Raises:
            ValueError: a trainable layer of the trunk feeds no task-specific norm and isn't in `summed`.
        """
        check_norms(model, self.tasks)
        with ConnectionTrace(model, attention=self.attention) as trace:
            yield
        connections = trace.connections()
        check_connections(model, connections, self.trunk or (), self.summed or ())
        self._connections = connections

    @property
    def is_watched(self) -> bool:
        """Whether a forward was watched."""
        return self._connections is not None

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The layers whose channels have a strength, in the order of the projection's layers.

        Raises:
            RuntimeError: no forward was watched yet.
        """
        if self._connections is None:
            raise RuntimeError(
                "ConnectionStrength doesn't know the layers yet: run one forward inside watch(model)"
            )
        return self._connections

    def draw_phase(self, epoch: int) -> Phase:
        """The phase of an epoch, drawn once: P ~ U(0, 1), phase 1 if P > e/E. The same on all ranks.

        Args:
            epoch: e, from 1. Asked again for the same epoch (as after a resume), the same answer.

        Raises:
            ValueError: an epoch outside 1..E.
        """
        if not 1 <= epoch <= self.num_epochs:
            raise ValueError(
                f"epoch must be in 1..{self.num_epochs}, as setup learned, counted from 1; got {epoch}"
            )
        if epoch != self.epoch:
            draw = float(torch.rand((), generator=self.phase_generator, dtype=torch.float64))
            self.epoch = epoch
            if self.phases == "mixed":
                self.phase = "sequential" if draw > epoch / self.num_epochs else "grouped"
        return self.phase

    @torch.no_grad()
    def strengths(self, model: nn.Module) -> tuple[Tensor, ...]:
        """Normalised strengths (Eq. 7) of each layer's channels: L tensors (O, T), float64."""
        result = []
        for connection in self.connections:
            norms = model.get_submodule(connection.norm)
            gain = torch.stack([norm_gain(norms[task]) for task in self.tasks], dim=1)  # (O of the norm, T)
            for outer in reversed(connection.through):
                gain = input_gain(gain, model.get_submodule(outer).weight)
            result.append(layer_strength(gain, model.get_submodule(connection.layer).weight))
        return tuple(result)

    def reached(self, parameters: Mapping[str, Sequence[bool]]) -> Tensor:
        """(L, T) bool: which tasks reach which layer, from parameter's name → which tasks reach it."""
        result = torch.zeros(len(self.connections), len(self.tasks), dtype=torch.bool)
        for row, connection in zip(result, self.connections, strict=True):
            for part in ("weight", "bias"):
                for task, is_reached in enumerate(parameters.get(f"{connection.layer}.{part}", ())):
                    row[task] |= is_reached
        return result

    def assign(
        self, model: nn.Module, reached: Tensor, *, strengths: Sequence[Tensor] | None = None
    ) -> GroupProjection:
        """Give each channel to its top task (Eq. 10) among those that take part.

        Args:
            model: the converted model; its parameters' names are those of the gradients.
            reached: (T,) or (L, T) bool: tasks present in the global batch, or per layer which of them reach it.
            strengths: as `strengths` gives them. Ranks with batch norms of their own statistics pass the mean over
                ranks, since all must assign alike; None computes them here.
        """
        strengths = self.strengths(model) if strengths is None else strengths
        masks = reached.expand(len(strengths), len(self.tasks))
        groups = [top_tasks(strength, mask) for strength, mask in zip(strengths, masks, strict=True)]
        parameters = {}
        for index, connection in enumerate(self.connections):
            layer = model.get_submodule(connection.layer)
            parameters[f"{connection.layer}.weight"] = (index, layer.weight[0].numel())
            parameters[f"{connection.layer}.bias"] = (index, 1)
        return GroupProjection(groups=groups, parameters=parameters, num_tasks=len(self.tasks))

    def project(
        self,
        model: nn.Module,
        pieces: Sequence[tuple[str, int, Sequence[Tensor | None]]],
        reached: Tensor,
        *,
        strengths: Sequence[Tensor] | None = None,
        add: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Phase 2's gradient, from the gradients of the global batch or this rank's pieces of them; for `report` too.

        Args:
            model: the converted model.
            pieces: parameter's name, index of the first element in it, and T gradients in the order of `plan` as
                `GroupProjection.merge` takes them, one task's at least.
            reached: (L, T), as `reached` gives it, the same on all ranks.
            strengths: as `assign`.
            add: the pieces' inner products → those of all ranks; None: these are all pieces.

        Returns:
            Each piece's gradient.
        """
        projection = self.assign(model, reached, strengths=strengths)
        products = projection.zero_products()
        for name, start, per_task in pieces:
            projection.add_products(products, name, per_task, start=start)
        products = products if add is None else add(products)
        self.record(projection, products)
        coefficients = projection.coefficients(products)
        return [
            projection.merge(name, per_task, coefficients, start=start) for name, start, per_task in pieces
        ]

    def record_shares(self, model: nn.Module) -> None:
        """Note for `report` how many channels each task leads, where nothing is projected."""
        everyone = torch.ones(len(self.tasks), dtype=torch.bool)
        self._record = {"top_share": self._top_share([top_tasks(s, everyone) for s in self.strengths(model)])}

    def record(self, projection: GroupProjection, products: Tensor) -> None:
        """Note for `report` what a step of phase 2 did.

        Args:
            projection: of the step.
            products: (L, T, T), its inner products.
        """
        has_own = products.diagonal(dim1=1, dim2=2) > 0  # (L, T)
        is_pair = has_own[:, :, None] & (products != 0)  # a task without a gradient has zeros
        is_pair &= ~torch.eye(len(self.tasks), dtype=torch.bool, device=products.device)
        num_pairs = int(is_pair.sum())
        conflicts = int((is_pair & (products < 0)).sum())
        self._record = {
            "top_share": self._top_share(projection.groups),
            "group_conflict_share": conflicts / num_pairs if num_pairs else None,
        }

    def report(self) -> dict[str, Any]:
        """As the base class, and `phase`; after `record` or `record_shares`, also what they noted.

        - `top_share`: group → share of the channels that it leads (the paper's Fig. 4),
        - `group_conflict_share`: of all pairs of a channel group's own gradient and another's, those in conflict.
        """
        return {**super().report(), "phase": self.phase, **self._record}

    def state_dict(self) -> dict[str, Any]:
        """The base class's, the epoch and phase drawn last, and the phases' generator."""
        own = {"epoch": self.epoch, "phase": self.phase, "phase_generator": self.phase_generator.get_state()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; after `setup`.

        Raises:
            ValueError: the state belongs to another method.
        """
        own = {key: state[key] for key in ("epoch", "phase", "phase_generator") if key in state}
        if len(own) < 3 or own["phase"] not in get_args(Phase):
            raise ValueError(
                f"the checkpoint's balancer state has {sorted(state)}; connection strength needs epoch, "
                "phase_generator and phase ('sequential' or 'grouped'). Resume with the balancer that wrote it"
            )
        super().load_state_dict({key: value for key, value in state.items() if key not in own})
        self.epoch, self.phase = int(own["epoch"]), own["phase"]
        self.phase_generator.set_state(own["phase_generator"].cpu())

    def _declare(self, model: nn.Module) -> None:
        """Where neither groups nor trunk were given, take what the model declares."""
        names = getattr(model, "task_names", ())
        if not self.plan:
            self._group(getattr(model, "task_groups", None) or {task: (task,) for task in names})
        if self.trunk is None:
            self.trunk = tuple(getattr(model, "trunk_names", ()))
        if self.summed is None:
            self.summed = (*_SUMMED, *getattr(model, "summed_layers", ()))

    def _group(self, groups: Mapping[str, Sequence[str]]) -> None:
        check_groups(groups)
        self.plan = tuple((group, tuple(tasks)) for group, tasks in groups.items())
        self.tasks = tuple(groups)

    def _top_share(self, groups: Sequence[Tensor]) -> dict[str, float]:
        channels = torch.cat([group.cpu() for group in groups])
        return {task: float((channels == i).double().mean()) for i, task in enumerate(self.tasks)}
