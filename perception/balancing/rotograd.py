"""RotoGrad: rotate the shared features for each task so that the task gradients agree, in size and direction.

Legend: T tasks, n feature vectors of the batch (all positions of all samples), d their length.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from perception.balancing._checks import check_range
from perception.balancing.task_copies import check_tasks


class RotoGrad(nn.Module):
    """One rotation of the shared features per task, with its own loss and optimiser, and gradients of equal size.

    *Source*: Javaloy and Valera, RotoGrad (ICLR 2022): task k's head reads r_k = R_k z. With g_k = ∂L_k/∂z and
    g̃_k = ∂L_k/∂r_k = R_k g_k (per feature vector), and norms over the whole batch,

    - size (its §3.1): the trunk receives Σ_k C g_k/‖g_k‖, where C = Σ_k α_k ‖g_k‖ and α_k is ‖g_k‖/‖g_k at the first
      step‖, divided by its sum over the tasks: the tasks that have converged least count most.
    - direction (its §3.2): R_k minimises −Σ_n ⟨R_kᵀ g̃_k,n , v_n⟩ with the mean v = 1/T Σ_k C g_k/‖g_k‖ and g̃_k held
      fixed, by an optimiser of its own with its own, falling learning rate.

    R_k = exp(A_k − A_kᵀ) is always a rotation, the identity at the start. This is the whole method, size and
    direction, with Adam for the rotations. *Deviations*: the mean over n instead of the sum, so that the rotations'
    learning rate doesn't depend on the batch (as in their code); for BEV features, n runs over cells and samples and
    one rotation serves all cells. As in their code the reference norms are taken anew after `burn_in` steps.

    *Use*: the model has it between trunk and heads, as `RotoGrad(tasks=("det", "seg"), size=256)` built from its
    config, and calls `rotate` for each head. Per step a training loop takes the gradients of the losses with respect
    to the rotated features; sums `squared_norms` over ranks; runs the trunk's backward with Σ_k c_k `rotate_back(g̃_k)`
    for the factors c of `coefficients`; and calls `step_rotations`. The generators A are parameters of the module, but
    have a gradient only inside `step_rotations`, so that another optimiser leaves them alone.

    Args:
        tasks: names of at least two tasks.
        size: d.
        lr: the rotations' learning rate at the start.
        decay: factor of that rate per epoch (`end_epoch`).
        burn_in: step, from 0, whose norms replace the first step's as reference.

    Raises:
        ValueError: fewer than two tasks, a size, rate, decay or step outside its range.

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
        check_range("lr", lr, 0.0, is_open=True)
        check_range("decay", decay, 0.0, 1.0, is_open=True)
        check_range("burn_in", burn_in, 0)
        self.tasks = tuple(tasks)
        self.decay = decay
        self.burn_in = burn_in
        self.generators = nn.ParameterDict({task: nn.Parameter(torch.zeros(size, size)) for task in tasks})
        self.register_buffer("reference_norms", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.reference_norms: Tensor
        self.num_steps: Tensor
        self.optimizer = torch.optim.Adam(self.generators.values(), lr=lr)

    def rotation(self, task: str) -> Tensor:
        """R_k: (d, d), orthogonal with determinant 1, differentiable.

        Raises:
            ValueError: an unknown task.
        """
        if task not in self.tasks:
            raise ValueError(f"RotoGrad has no task {task!r}; its tasks are {list(self.tasks)}")
        generator = self.generators[task]
        return torch.linalg.matrix_exp(generator - generator.T)

    def rotate(self, features: Tensor, task: str) -> Tensor:
        """(..., d) → (..., d), R_k z; neither trunk nor heads train the rotation."""
        return features @ self.rotation(task).detach().T.to(features.dtype)

    def rotate_back(self, grad: Tensor, task: str) -> Tensor:
        """Gradient with respect to the rotated features → with respect to the features: R_kᵀ g̃, (..., d)."""
        return grad @ self.rotation(task).detach().to(grad.dtype)

    def squared_norms(self, grads: Mapping[str, Tensor]) -> Tensor:
        """(T,) float64 squared norms over the local batch, 0 where absent; ranks sum them. Rotations keep norms."""
        norms = [
            grads[task].double().square().sum() if task in grads else torch.zeros(()) for task in self.tasks
        ]
        return torch.stack([norm.detach().cpu().double() for norm in norms])

    def coefficients(self, squared_norms: Tensor) -> Tensor:
        """Factor of each task's gradient in the trunk's, C/‖g_k‖; counts a step.

        Args:
            squared_norms: (T,) of the global batch; 0: the task is absent and takes no part.

        Returns:
            (T,) float64; 0 where absent.

        Raises:
            ValueError: a norm isn't finite.
        """
        if not bool(squared_norms.isfinite().all()):
            raise ValueError("RotoGrad's gradient norms are not finite; leave out such a step")
        norms = squared_norms.cpu().double().sqrt()
        present = norms > 0
        reference = self.reference_norms.cpu()
        is_new = present & ((reference == 0) | (self.num_steps.cpu() == self.burn_in))
        reference = torch.where(is_new, norms, reference)
        self.reference_norms.copy_(reference)
        self.num_steps += 1
        progress = torch.where(present, norms / torch.where(present, reference, 1.0), 0.0)
        common = (progress * norms).sum() / progress.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(present, common / torch.where(present, norms, 1.0), 0.0)

    def rotation_loss(self, grads: Mapping[str, Tensor], factors: Tensor) -> Tensor:
        """Σ_k −mean_n ⟨R_kᵀ g̃_k,n , v_n⟩ over the tasks at hand, 0-dim; only the rotations get gradients.

        Args:
            grads: task → (..., d), with respect to the rotated features, all of the same positions.
            factors: (T,), what `coefficients` gave for this step.

        Raises:
            ValueError: no task has a gradient.
        """
        if not grads:
            raise ValueError("RotoGrad has no task's gradient in this step; leave the step out")
        fixed = {task: grad.detach().flatten(0, -2) for task, grad in grads.items()}  # (n, d)
        balanced = [
            factors[self.tasks.index(task)].to(grad) * self.rotate_back(grad, task)
            for task, grad in fixed.items()
        ]
        mean = torch.stack(balanced).mean(dim=0)  # v: (n, d)
        agreements = [
            ((grad @ self.rotation(task).to(grad.dtype)) * mean).sum(dim=-1).mean()
            for task, grad in fixed.items()
        ]
        return -torch.stack(agreements).sum()

    def step_rotations(
        self,
        grads: Mapping[str, Tensor],
        factors: Tensor,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """One step of the rotations' own optimiser.

        Args:
            grads: as `rotation_loss`; may be empty on a rank without any task.
            factors: (T,), 0 for tasks absent from the global batch; their rotations stay.
            reduce: mean over ranks of a (d, d) gradient, called once per present task, in their order.
        """
        present = [task for task, factor in zip(self.tasks, factors.tolist(), strict=True) if factor > 0]
        generators = [self.generators[task] for task in present]
        found = [torch.zeros_like(generator) for generator in generators]
        if grads and present:
            loss = self.rotation_loss(grads, factors)
            found = torch.autograd.grad(loss, generators, allow_unused=True, materialize_grads=True)
        for generator, grad in zip(generators, found, strict=True):
            generator.grad = grad if reduce is None else reduce(grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def end_epoch(self) -> None:
        """Lower the rotations' learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay
