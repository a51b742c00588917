"""Random draws that all ranks share: TorchJD takes torch's global generators, so ours lends them a seed per call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_draws_from(
    generator: torch.Generator | None, device: torch.device | None = None
) -> Iterator[None]:
    """Inside, torch's global generator of `device` starts from a seed drawn from `generator`; after, it is as before.

    Args:
        generator: ours, on the CPU; None leaves the global one alone.
        device: whose global generator the call will use, by default the CPU's.
    """
    if generator is None:
        yield
        return
    with global_draws_of(draw_seed(generator), device):
        yield


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed drawn from a CPU generator, or from torch's global one."""
    return int(torch.randint(2**62, (), generator=generator))


@contextmanager
def global_draws_of(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """As `global_draws_from`, from a known seed."""
    if device is not None and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        used = torch.cuda.default_generators[index]
    else:
        used = torch.default_generator
    state = used.get_state()
    used.manual_seed(seed)
    try:
        yield
    finally:
        used.set_state(state)
