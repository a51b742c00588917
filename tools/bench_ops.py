#!/usr/bin/env python
"""Time deformable attention: the kernels, the reference and mmcv's, interleaved in one run.

Examples:
    python tools/bench_ops.py
    python tools/bench_ops.py --device cuda --dtype bfloat16 --cases base --out work_dirs/ops_base.json
    python tools/bench_ops.py --device cpu --threads 1 --cases "tiny decoder"

Every attention of bevformer_tiny, bevformer_small and upstream's base, one sample: milliseconds (best of the repeats)
of forward and of forward and backward, and on CUDA the peak memory beyond the inputs. Triton's kernel and mmcv's
compiled operator are for CUDA, numba's kernel is for CPUs.
Exit code 0; 2 for a wrong option.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perception.ops import multi_scale_deformable_attention
from perception.utils import write_json_atomic

Shapes = Sequence[tuple[int, int]]
Attention = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call's sizes, always with 8 heads of 32 channels; ``shapes`` as (h, w)."""

    name: str
    batch: int
    queries: int
    shapes: Shapes
    points: int


def cases_of(model: str, side: int, image: Shapes) -> list[Case]:
    """The three attentions of a model; a camera is taken to see a quarter of the BEV."""
    bev = ((side, side),)
    return [
        Case(name=f"{model} temporal", batch=2, queries=side * side, shapes=bev, points=4),
        Case(name=f"{model} spatial", batch=6, queries=side * side // 4, shapes=image, points=8),
        Case(name=f"{model} decoder", batch=1, queries=900, shapes=bev, points=4),
    ]


CASES = [
    *cases_of("tiny", 50, ((15, 25),)),
    *cases_of("small", 150, ((9, 16),)),
    *cases_of("base", 200, ((116, 200), (58, 100), (29, 50), (15, 25))),
]


def implementations(device: str) -> dict[str, Attention]:
    """What can run there, by name; the reference first."""
    found: dict[str, Attention] = {
        "reference": partial(multi_scale_deformable_attention, implementation="reference"),
        "mmcv in torch": mmcv_in_torch,
    }
    if not device.startswith("cuda"):
        print("The Triton kernel and mmcv's compiled operator need CUDA and are not measured.")
        found["numba"] = partial(multi_scale_deformable_attention, implementation="numba")
        return found
    from perception.ops.mmcv_finder import uses_fallback

    found["triton"] = partial(multi_scale_deformable_attention, implementation="triton")
    found["triton, deterministic"] = found["triton"]
    if uses_fallback():
        print("This mmcv has no compiled operators; its kernel is not measured.")
    else:
        found["mmcv compiled"] = mmcv_compiled
    return found


def mmcv_in_torch(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The version of mmcv in plain torch; it needs one dtype for all."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # after perception.ops

    locations, weights = locations.to(value.dtype), weights.to(value.dtype)
    return multi_scale_deformable_attn_pytorch(value, torch.tensor(shapes), locations, weights)


def mmcv_compiled(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The CUDA kernel of mmcv; half precision goes through float32, as upstream's BEVFormer does it."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    sides = torch.tensor(shapes, device=value.device)
    starts = torch.tensor([0] + [h * w for h, w in shapes], device=value.device).cumsum(0)[:-1]
    floats = (value.float(), sides, starts, locations.float(), weights.float())
    return MultiScaleDeformableAttnFunction.apply(*floats, 64).to(value.dtype)


def run_once(
    attention: Attention, case: Case, inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, float, float]:
    """Seconds of the forward, seconds of forward and backward, and peak MiB beyond what was there before."""
    for tensor in inputs:
        tensor.grad = None
    before = 0
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = _now(inputs[0])
    output = attention(inputs[0], case.shapes, inputs[1], inputs[2])
    forwarded = _now(inputs[0])
    output.backward(torch.ones_like(output))
    ended = _now(inputs[0])
    peak = torch.cuda.max_memory_allocated() - before if inputs[0].is_cuda else 0
    return forwarded - started, ended - started, peak / 2**20


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def make_inputs(case: Case, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded value, sampling locations (a few of them outside) and attention weights."""
    torch.manual_seed(0)
    cells, levels = sum(h * w for h, w in case.shapes), len(case.shapes)
    places = (case.batch, case.queries, 8, levels, case.points)
    value = torch.randn(case.batch, cells, 8, 32).to(device, dtype)
    locations = (torch.rand(*places, 2) * 1.2 - 0.1).to(device)
    weights = torch.rand(places).flatten(-2).softmax(-1).view(places).to(device, dtype)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


def measure(
    case: Case, attentions: dict[str, Attention], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for each implementation; a first round that is not measured compiles and warms up."""
    inputs = make_inputs(case, options.device, DTYPES[options.dtype])
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in attentions}
    for _ in range(options.repeats + 1):
        for name, attention in attentions.items():
            torch.use_deterministic_algorithms(name.endswith("deterministic"))
            runs[name].append(run_once(attention, case, inputs))
            torch.use_deterministic_algorithms(False)
    rows = []
    for name, measured in runs.items():
        forward, both, peak = (min(column) for column in zip(*measured[1:], strict=True))
        rows.append(
            {"case": case.name, "implementation": name, "ms_forward": 1e3 * forward,
             "ms_forward_backward": 1e3 * both, "peak_memory_mb": peak}
        )  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="default CUDA where it is there")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of value and weights")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those whose name has this text")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=10, help="rounds measured (default 10)")
    parser.add_argument("--out", metavar="JSON", help="file for the result")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.cases in case.name]
    if not cases or options.repeats < 1 or options.threads < 1:
        parser.error(
            f"--repeats and --threads must be 1 or more, --cases part of {[case.name for case in CASES]}"
        )
    torch.set_num_threads(options.threads)
    where = (
        torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    )
    print(f"torch {torch.__version__}, {where}, {options.dtype}, best of {options.repeats}")
    attentions = implementations(options.device)
    print(
        f"{'case':16}{'implementation':24}{'fwd ms':>10}{'fwd+bwd':>10}{'x faster':>10}{'x both':>8}{'MiB':>9}"
    )
    rows: list[dict[str, Any]] = []
    for case in cases:
        measured = measure(case, attentions, options)
        rows += measured
        for row in measured:
            forward, both = row["ms_forward"], row["ms_forward_backward"]
            ratios = measured[0]["ms_forward"] / forward, measured[0]["ms_forward_backward"] / both
            print(
                f"{row['case']:16}{row['implementation']:24}{forward:10.3f}{both:10.3f}{ratios[0]:10.2f}"
                f"{ratios[1]:8.2f}{row['peak_memory_mb']:9.0f}",
                flush=True,
            )
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        result = {"torch": torch.__version__, "device": where, "dtype": options.dtype, "rows": rows}
        write_json_atomic(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
