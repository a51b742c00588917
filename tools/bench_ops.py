"""Times deformable attention against mmcv's plain-torch version, interleaved in one run.

    python tools/bench_ops.py [--device cpu] [--threads 1] [--repeats 10]

Prints milliseconds (best of the repeats) of forward and of forward + backward, and the ratio (above 1: ours is
faster).
Exit code 0; 2 for a wrong option.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perception.ops import multi_scale_deformable_attention

Attention = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call's sizes; ``shapes`` as (h, w)."""

    name: str
    batch: int
    queries: int
    heads: int
    channels: int
    shapes: tuple[tuple[int, int], ...]
    points: int


CASES = (
    Case(name="history 32x32", batch=4, queries=1024, heads=4, channels=16, shapes=((32, 32),), points=4),
    Case(name="history 50x50", batch=2, queries=2500, heads=8, channels=8, shapes=((50, 50),), points=4),
    Case(name="cameras 7x11", batch=24, queries=400, heads=4, channels=16, shapes=((7, 11),), points=8),
    Case(name="decoder 50x50", batch=2, queries=300, heads=8, channels=8, shapes=((50, 50),), points=4),
    Case(name="four levels", batch=1, queries=900, heads=8, channels=32, shapes=((32, 56), (16, 28), (8, 14), (4, 7)),
         points=4),
)  # fmt: skip


def mmcv_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The version of mmcv with our signature."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # after perception.ops

    return multi_scale_deformable_attn_pytorch(value, torch.tensor(shapes), locations, weights)


def run_once(attention: Attention, case: Case, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of the forward, and of forward and backward."""
    for tensor in inputs:
        tensor.grad = None
    started = _now(inputs[0])
    output = attention(inputs[0], case.shapes, inputs[1], inputs[2])
    forwarded = _now(inputs[0])
    output.backward(torch.ones_like(output))
    return forwarded - started, _now(inputs[0]) - started


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def make_inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded value, sampling locations (a few of them outside) and attention weights."""
    torch.manual_seed(0)
    cells, levels = sum(h * w for h, w in case.shapes), len(case.shapes)
    places = (case.batch, case.queries, case.heads, levels, case.points)
    value = torch.randn(case.batch, cells, case.heads, case.channels)
    weights = torch.rand(places).flatten(-2).softmax(-1).view(places)
    tensors = (value, torch.rand(*places, 2) * 1.2 - 0.1, weights)
    return tuple(x.to(device).requires_grad_() for x in tensors)  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} thread(s), best of {options.repeats}"
    )
    print(
        f"{'case':16}{'ours fwd':>10}{'fwd+bwd':>10}{'mmcv fwd':>12}{'fwd+bwd':>10}{'ratio':>8}{'fwd+bwd':>10}"
    )
    for case in CASES:
        inputs = make_inputs(case, options.device)
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(run_once(multi_scale_deformable_attention, case, inputs))
            theirs.append(run_once(mmcv_attention, case, inputs))
        (a, b), (c, d) = (
            [1e3 * min(column) for column in zip(*runs, strict=True)] for runs in (ours, theirs)
        )
        print(f"{case.name:16}{a:10.1f}{b:10.1f}{c:12.1f}{d:10.1f}{c / a:8.2f}{d / b:10.2f}", flush=True)


if __name__ == "__main__":
    main()
