"""RotoGrad: rotate the shared features for each task so that the task gradients agree, in size and direction.

Legend: T tasks, n feature vectors of the batch (all positions of all samples), d their length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing._checks import check_range
from perception.balancing.task_copies import check_tasks

_BLOCK = 1 << 20  # elements per task that are in float64 at once


class RotoGrad(nn.Module):
    """One rotation of the shared features per task, with its own loss and optimiser, and gradients of equal size.

    *Source*: Javaloy and Valera, RotoGrad (ICLR 2022): task k's head reads r_k = R_k z. With g_k = ∂L_k/∂z =
    R_kᵀ g̃_k, g̃_k = ∂L_k/∂r_k (per feature vector), and norms over the whole batch,

    - size (its §3.1): the trunk receives Σ_k C g_k/‖g_k‖, where C = Σ_k α_k ‖g_k‖ and α_k is ‖g_k‖/‖g_k at the first
      step‖, divided by its sum over the tasks: the tasks that have converged least count most.
    - direction (its §3.2): R_k minimises −Σ_n ⟨R_kᵀ g̃_k,n , v_n⟩ with the mean v = 1/T Σ_k C g_k/‖g_k‖ and g̃_k held
      fixed, by an optimiser of its own with its own, falling learning rate.

    R_k = exp(A_k − A_kᵀ) is always a rotation, the identity at the start. This is the whole method, size and
    direction, with Adam for the rotations. *Deviations*: task k's term of the loss is divided by C ‖g_k‖, which makes
    it a cosine: neither losses, nor batch, nor number of cells change what Adam's ε means. For BEV features n runs over
    cells and samples, and one rotation serves all cells. Where fewer than two tasks are present, nothing is rotated.
    As in their code the reference norms are taken anew after `burn_in` steps.

    With ĝ_k = g_k/‖g_k‖ that loss is −Σ_k ⟨R_k, R_k' K_k⟩, R_k' being the rotation of the step and
    K_k = 1/T Σ_n Σ_j≠k ĝ_k,n ĝ_j,nᵀ a (d, d) matrix (j = k would add a constant). So ranks and micro-batches add up
    matrices instead of keeping features.

    *Use*: `RotoGradBalancer` puts it into a model and trains it. The generators A take no gradient, so that another
    optimiser leaves them alone, weight decay included; only `step` changes them.

    Args:
        tasks: names of at least two tasks.
        size: d.
        lr: the rotations' learning rate at the start.
        decay: factor of that rate per epoch (`end_epoch`).
        burn_in: step, from 0, whose norms replace the first step's as reference.

    Raises:
        ValueError: fewer than two tasks, a size, rate, decay or step outside its range.

    Attributes:
        reference_norms: (T,) float64, on the CPU, 0 for a task that was never there.
        num_steps: steps so far.

    Example:
        >>> roto = RotoGrad(tasks=("det", "seg"), size=4)
        >>> features = torch.ones(3, 4)
        >>> torch.equal(roto.rotate(features, "det"), features)
        True
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        size: int,
        lr: float = 1e-4,
        decay: float = 0.99,
        burn_in: int = 20,
    ) -> None:
        super().__init__()
        check_tasks(tasks)
        if len(tasks) < 2:
            raise ValueError(f"RotoGrad compares tasks, so it needs at least two; got {list(tasks)}")
        check_range("size", size, 1)
        check_options(lr=lr, decay=decay, burn_in=burn_in)
        self.tasks = tuple(tasks)
        self.size = size
        self.decay = decay
        self.burn_in = burn_in
        self.generators = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(size, size), requires_grad=False) for task in tasks}
        )
        self.reference_norms = torch.zeros(len(tasks), dtype=torch.float64)
        self.num_steps = 0
        self.optimizer = torch.optim.Adam(self.generators.values(), lr=lr)

    def rotation(self, task: str) -> Tensor:
        """R_k: (d, d) float64, orthogonal with determinant 1.

        Raises:
            ValueError: an unknown task.
        """
        if task not in self.tasks:
            raise ValueError(f"RotoGrad has no task {task!r}; its tasks are {list(self.tasks)}")
        return _rotation(self.generators[task])

    def rotate(self, features: Tensor, task: str) -> Tensor:
        """(..., d) → (..., d), R_k z, in the features' own precision; neither trunk nor heads train the rotation.

        Raises:
            ValueError: an unknown task, or features of another length.
        """
        if features.shape[-1] != self.size:
            raise ValueError(
                f"RotoGrad rotates vectors of {self.size} numbers along the last axis, got {tuple(features.shape)}"
            )
        with torch.autocast(features.device.type, enabled=False):
            return features @ self.rotation(task).T.to(features.dtype)

    def angle(self, task: str) -> float:
        """How far features are turned, degrees: the root mean square of R_k's angles in its d/2 planes."""
        generator = self.generators[task].detach().double()
        return float(torch.rad2deg((generator - generator.T).norm() / self.size**0.5))

    def gram(self, grads: Mapping[str, Tensor]) -> Tensor:
        """(T, T) float64 inner products over the local batch, on the CPU; 0 for tasks left out. Ranks sum them.

        Args:
            grads: task → (..., d), with respect to the features, all of one shape.
        """
        result = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        found = [number for number, task in enumerate(self.tasks) if task in grads]
        if found:
            rows = [grads[self.tasks[number]].flatten().split(_BLOCK) for number in found]
            blocks = (torch.stack(parts).double() for parts in zip(*rows, strict=True))
            products = torch.stack([block @ block.T for block in blocks]).sum(dim=0)
            result[torch.tensor(found)[:, None], torch.tensor(found)] = products.cpu()
        return result

    def coefficients(self, squared_norms: Tensor) -> Tensor:
        """Factor of each task's gradient in the trunk's, C/‖g_k‖.

        Args:
            squared_norms: (T,) of the global batch; 0: the task is absent and takes no part.

        Returns:
            (T,) float64, on the CPU; 0 where absent.

        Raises:
            ValueError: a norm isn't finite.
        """
        if not bool(squared_norms.isfinite().all()):
            raise ValueError("RotoGrad's gradient norms are not finite; leave out such a step")
        norms = squared_norms.cpu().double().sqrt()
        present = norms > 0
        reference = self._reference(norms)
        progress = torch.where(present, norms / torch.where(present, reference, 1.0), 0.0)
        common = (progress * norms).sum() / progress.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(present, common / torch.where(present, norms, 1.0), 0.0)

    def products(self, grads: Mapping[str, Tensor], squared_norms: Tensor) -> Tensor:
        """K, what the rotations learn from, summed over the local batch: (T, d, d). Ranks sum them.

        Args:
            grads: as `gram`.
            squared_norms: (T,) of the global batch.
        """
        generator = next(iter(self.generators.values()))
        result = generator.new_zeros(len(self.tasks), self.size, self.size)
        norms = squared_norms.cpu().double().sqrt()
        num_present = int((norms > 0).sum())
        unit = {
            number: grads[task].detach().flatten(0, -2).to(generator.dtype) / float(norms[number])  # (n, d)
            for number, task in enumerate(self.tasks)
            if task in grads and float(norms[number]) > 0
        }
        for number, rows in unit.items():
            others = [other for j, other in unit.items() if j != number]
            if others:
                result[number] = rows.T @ torch.stack(others).sum(dim=0) / num_present
        return result

    def generator_gradients(self, products: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Gradients of −Σ_k ⟨R_k, R_k' K_k⟩ with respect to the generators, (d, d) each, of their dtype.

        Args:
            products: K, (T, d, d), of the global batch.
            present: (T,) bool; an absent task has none, and none has one where fewer than two are present.
        """
        found: dict[str, Tensor] = {}
        numbers = present.nonzero().flatten().tolist()
        for number in numbers if len(numbers) > 1 else ():
            task = self.tasks[number]
            fixed = self.rotation(task) @ products[number].double()
            generator = self.generators[task].clone().requires_grad_()
            with torch.enable_grad():
                loss = -(_rotation(generator) * fixed).sum()
            (found[task],) = torch.autograd.grad(loss, generator)
        return found

    def step(self, squared_norms: Tensor, products: Tensor) -> None:
        """Count a step that the trunk took, and take one of the rotations' own optimiser.

        Args:
            squared_norms: (T,) of the global batch; 0: the task is absent, and its rotation and moments rest.
            products: K, (T, d, d), of the global batch.
        """
        norms = squared_norms.cpu().double().sqrt()
        for task, grad in self.generator_gradients(products, norms > 0).items():
            self.generators[task].grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.reference_norms = self._reference(norms)
        self.num_steps += 1

    def end_epoch(self) -> None:
        """Lower the rotations' learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay

    def training_state(self) -> dict[str, Any]:
        """What a resume needs beside `state_dict`: tensors and JSON-able values."""
        moments = {task: self.optimizer.state.get(self.generators[task], {}) for task in self.tasks}
        return {
            "reference_norms": self.reference_norms,
            "num_steps": self.num_steps,
            "lr": self.optimizer.param_groups[0]["lr"],
            "moments": {task: dict(state) for task, state in moments.items() if state},
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `training_state` returned.

        Raises:
            ValueError: it is of other tasks, or of another size.
        """
        moments = {task: dict(parts) for task, parts in state["moments"].items()}
        shape = (self.size, self.size)
        wrong = [
            task
            for task, parts in moments.items()
            if task not in self.tasks or any(part.dim() and part.shape != shape for part in parts.values())
        ]
        if wrong or len(state["reference_norms"]) != len(self.tasks):
            raise ValueError(
                f"the checkpoint's RotoGrad state has {len(state['reference_norms'])} tasks and moments of "
                f"{list(moments)}, which don't fit {list(self.tasks)} of size {self.size}. Resume with the config that "
                "wrote it"
            )
        self.reference_norms = state["reference_norms"].cpu().double().clone()
        self.num_steps = int(state["num_steps"])
        for group in self.optimizer.param_groups:
            group["lr"] = float(state["lr"])
        self.optimizer.state.clear()
        for task, parts in moments.items():
            generator = self.generators[task]
            self.optimizer.state[generator] = {
                name: part.to(generator, copy=True) if part.dim() else part.clone()
                for name, part in parts.items()
            }

    def _reference(self, norms: Tensor) -> Tensor:
        """(T,) reference norms with this step's (T,) taken in where they are due."""
        is_new = (norms > 0) & ((self.reference_norms == 0) | (self.num_steps == self.burn_in))
        return torch.where(is_new, norms, self.reference_norms)


def check_options(*, lr: float, decay: float, burn_in: int) -> None:
    """Refuse options of `RotoGrad` that are outside their ranges.

    Raises:
        ValueError: names the option, its value and the allowed range.
    """
    check_range("lr", lr, 0.0, is_open=True)
    check_range("decay", decay, 0.0, 1.0, is_open=True)
    check_range("burn_in", burn_in, 0)


def _rotation(generator: Tensor) -> Tensor:
    # In float32 the result would be off by 1e-5, and no rotation.
    return torch.linalg.matrix_exp((generator - generator.T).double())
