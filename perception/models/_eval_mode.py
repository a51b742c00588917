"""Running part of a training step as in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_no_grad(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and afterwards each module exactly as it was.

    `train()` and `eval()` are not called: overridden ones (frozen batch norms) would not restore a mixed state.
    """
    states = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in states:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in states:
            module.training = training
