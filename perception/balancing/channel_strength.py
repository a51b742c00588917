"""How strongly each output channel of a layer serves each task.

Legend: O output channels, I input channels, T tasks, p an output and q an input channel, i a task.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NO_TASK = -1


def squared_weights(weight: Tensor) -> Tensor:
    """Connection strength between channels: s_pq = 1/K² Σ_mn W(p, q, m, n)².

    *Source*: connection strength Eq. 4; a linear layer is the case K = 1.

    Args:
        weight: (O, I), or (O, I, K, ...) of a convolution; of a grouped one, I counts the inputs per group.

    Returns:
        (O, I), float64.
    """
    squares = weight.detach().double().square()
    return squares if weight.dim() == 2 else squares.flatten(2).mean(dim=2)


def norm_gain(norm: nn.Module) -> Tensor:
    """Squared coefficient with which each input channel of a task's norm enters its output: (O,), float64.

    *Source*: connection strength Eqs. 5 and 6. z = γ/√(Var[y] + ε) · y + const gives γ_p² / (Var[y]_p + ε). The paper
    leaves open which variance; here it is the running one, which is the same for all steps of a batch.

    *Extension* to a layer norm, z_p = γ_p (y_p − ȳ)/√(Var[y] + ε) + β_p with mean and variance over the channels of
    one token: the coefficient of y_p is γ_p/√(Var[y] + ε), up to 1 − 1/O from ȳ, and that of y_p in other channels is
    O times smaller. Averaged over tokens its square is γ_p² E[1/(Var[y] + ε)]. The factor E[·] and 1 − 1/O are the
    same for all channels of a layer, so Eq. 7 cancels them: the gain is γ_p², without any statistics. A residual
    added before the norm changes Var[y] only, hence nothing.
    """
    square = norm.weight.detach().double().square()
    if isinstance(norm, _BatchNorm):
        return square / (norm.running_var.double() + norm.eps)
    return square


def input_gain(gain: Tensor, weight: Tensor) -> Tensor:
    """Gain of a layer's *inputs* from the gain of its outputs: Σ_p gain_p s_pq.

    *Extension* of Eq. 6 to a layer that no norm follows directly, such as the first linear layer of a feed-forward or
    an attention's value projection: its channel q reaches the norm through each output p of the next layer. With
    inputs of equal variance that are not correlated, squared coefficients add up over p and multiply along the
    path, as s_pq and γ_p²/(Var + ε) do in Eq. 6. An activation between the layers scales the mean square of each
    channel alike (a ReLU of a symmetric input by 1/2), and attention averages values over positions without mixing
    channels: Eq. 7 cancels both.

    Args:
        gain: (O, T) or (O,), of the outputs.
        weight: (O, I, ...).

    Returns:
        (I, T) or (I,), float64.
    """
    return squared_weights(weight).T @ gain


def layer_strength(gain: Tensor, weight: Tensor) -> Tensor:
    """Normalised connection strength: S_p = gain_p Σ_q s_pq, divided by its sum over the channels.

    *Source*: connection strength Eqs. 6 and 7. A task whose strengths are all zero keeps zeros.

    Args:
        gain: (O, T), squared coefficient of each output channel for each task.
        weight: (O, I, ...).

    Returns:
        (O, T), float64, in 0..1; each column sums to 1 (or is 0).

    Example:
        >>> layer_strength(torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.ones(2, 5)).tolist()
        [[0.25, 1.0], [0.75, 0.0]]
    """
    strength = gain.double() * squared_weights(weight).sum(dim=1, keepdim=True)
    total = strength.sum(dim=0, keepdim=True)
    return strength / torch.where(total > 0, total, 1.0)


def top_tasks(strength: Tensor, present: Tensor) -> Tensor:
    """The task that each channel serves most: ν = argmax_i Ŝ_p^i.

    *Source*: connection strength Eq. 10; the groups CG_ν are the channels of one value. The paper doesn't say what
    a tie means; here a channel whose largest strength two tasks share (all do, before the first update) belongs to
    no task, so that the order of the tasks never decides.

    Args:
        strength: (O, T), normalised.
        present: (T,) bool, the tasks that take part.

    Returns:
        (O,) long, `NO_TASK` where no task leads.

    Example:
        >>> top_tasks(torch.tensor([[0.7, 0.2], [0.3, 0.3]]), torch.tensor([True, True])).tolist()
        [0, -1]
    """
    candidates = strength.masked_fill(~present.to(strength.device), -1.0)
    best, task = candidates.max(dim=1)
    is_shared = (candidates == best[:, None]).sum(dim=1) > 1
    return task.masked_fill(is_shared | (best <= 0), NO_TASK)
