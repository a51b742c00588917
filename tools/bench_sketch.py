#!/usr/bin/env python
"""Measure how far sketched Gram matrices, and the coefficients from them, are from the exact ones on real gradients.

Examples:
    python tools/bench_sketch.py --data-root data/nuscenes-synthetic
    python tools/bench_sketch.py --checkpoint work_dirs/demo/train --out docs/results/sketch.json

Takes the task gradients of a config's model on some of its training samples, and sketches each with several seeds. Per
size k: the root mean square and the largest error of a cosine, beside the bound sqrt((1 + c^2) / k) of its standard
deviation; and how far the coefficients are off, relative to their length: root mean square over samples and seeds.
Exit code 0; 2 for a wrong option, 4 for data or weights that can't be read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

import perception.datasets  # noqa: F401  registers
import perception.models  # noqa: F401  registers
from perception.balancing import build_balancer
from perception.balancing.gradient_sketch import GradientSketch
from perception.balancing.task_gradients import TaskGradients
from perception.checkpoint import CheckpointError, load_weights
from perception.config import ConfigError, load_config, override_config, with_data_root
from perception.registry import DATASETS, MODELS
from perception.utils import DataError, write_json_atomic

METHODS = ("pcgrad", "wpcgrad-seg-vel", "mgda", "cagrad", "imtl_g", "aligned_mtl")
ARGUMENTS = {"cagrad": {"c": 0.5}}


class Sample:
    """One batch's exact numbers, and the rows that they are from."""

    def __init__(self, gradients: TaskGradients, losses: Tensor) -> None:
        self.present = gradients.reached.any(dim=1)
        self.rows = gradients.rows.clone()
        shared = gradients.shared(self.present)
        numels = torch.tensor([parameter.numel() for parameter in gradients.parameters])
        self.chosen = shared.repeat_interleave(numels)
        self.losses = losses
        self.gram = gradients.gram(self.present)


def take_samples(options: argparse.Namespace) -> tuple[tuple[str, ...], list[Sample]]:
    """Task names, and the samples, evenly spread over the training set."""
    config = load_config(options.config)
    if options.data_root:
        config = with_data_root(config, options.data_root)
    config = override_config(config, options.overrides)
    torch.manual_seed(0)
    data = DATASETS.build(dict(config.train_dataloader.dataset))
    model = MODELS.build(dict(config.model))
    model.init_weights()
    if options.checkpoint:
        model.load_state_dict(load_weights(options.checkpoint).model_state)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    samples = []
    for number in range(options.samples):
        batch = model.data_preprocessor(pseudo_collate([data[number * len(data) // options.samples]]), True)
        losses = model.parse_losses(model(**batch, mode="loss"))[0]
        gradients = TaskGradients(parameters, len(losses.task_names))
        values = torch.zeros(len(losses.task_names), dtype=torch.float64)
        for task in losses:
            index = losses.task_names.index(task)
            values[index] = losses[task].detach()
            gradients.add(index, losses[task], retain_graph=True)
        samples.append(Sample(gradients, values))
        print(
            f"sample {number + 1} of {options.samples}: {gradients.rows.shape[1]:,} gradient elements",
            flush=True,
        )
    return losses.task_names, samples


def coefficients(method: str, tasks: Sequence[str], sample: Sample, gram: Tensor) -> Tensor:
    """(T,) of a method's first update of a run."""
    balancer = build_balancer({"name": method, **ARGUMENTS.get(method, {})})
    balancer.setup(tuple(tasks), max_epochs=24, total_steps=1000, seed=0)
    balancer.begin_epoch(1)
    weights = balancer.weigh(sample.losses, sample.present)
    weighed = weights[:, None] * gram * weights
    return balancer.combine(weights * sample.losses, sample.present, weighed).double()


def measure(tasks: Sequence[str], samples: Sequence[Sample], size: int, seeds: int) -> dict[str, Any]:
    """One row of the table."""
    errors, bounds = [], []
    offs: dict[str, list[float]] = {method: [] for method in METHODS}
    for sample in samples:
        norms = sample.gram.diagonal().sqrt()
        exact = sample.gram / (norms[:, None] * norms)
        pairs = torch.ones_like(exact, dtype=torch.bool).triu(1)
        bounds.append(((1 + exact[pairs].square()) / size).mean())
        wanted = {method: coefficients(method, tasks, sample, sample.gram) for method in METHODS}
        for seed in range(seeds):
            sketched = GradientSketch(size=size, seed=seed)(sample.rows, sample.chosen).cpu()
            gram = sketched @ sketched.T
            found = gram / (gram.diagonal().sqrt()[:, None] * gram.diagonal().sqrt())
            errors.append((found - exact)[pairs])
            for method, expected in wanted.items():
                off = coefficients(method, tasks, sample, gram) - expected
                offs[method].append(float(off.norm() / expected.norm()))
    error = torch.stack(errors)
    return {
        "size": size,
        "cosine_rms": float(error.square().mean().sqrt()),
        "cosine_max": float(error.abs().max()),
        "cosine_bound": float(torch.stack(bounds).mean().sqrt()),
        "coefficients_rms": {
            method: float(torch.tensor(values).square().mean().sqrt()) for method, values in offs.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; write it as JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="bevformer_nano")
    parser.add_argument("--data-root", help="folder in nuScenes' format with an index; default the config's")
    parser.add_argument("--checkpoint", help="run folder, step folder or .safetensors; default fresh weights")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8, help="sketches of each sample and size")
    parser.add_argument("--sizes", default="1024,4096,16384,65536,262144", help="numbers per task")
    parser.add_argument("--out", metavar="JSON", help="file for the result")
    options = parser.parse_args(arguments)
    if not 1 <= min(options.samples, options.seeds):
        parser.error("--samples and --seeds must be 1 or more")
    try:
        sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes takes numbers with commas between, got {options.sizes!r}")
    if min(sizes) < 1:
        parser.error("--sizes must be 1 or more")
    try:
        tasks, samples = take_samples(options)
    except (ConfigError, CheckpointError, DataError) as error:
        print(f"bench_sketch: error: {error}", file=sys.stderr)
        return 4
    rows = []
    print(
        f"{'k':>7}{'cosine rms':>12}{'max':>9}{'bound':>9}" + "".join(f"{method:>17}" for method in METHODS)
    )
    for size in sizes:
        row = measure(tasks, samples, size, options.seeds)
        rows.append(row)
        cells = "".join(f"{row['coefficients_rms'][method]:>17.4f}" for method in METHODS)
        print(
            f"{size:>7}{row['cosine_rms']:>12.4f}{row['cosine_max']:>9.4f}{row['cosine_bound']:>9.4f}{cells}",
            flush=True,
        )
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(
            options.out,
            {
                "config": options.config,
                "tasks": list(tasks),
                "elements": samples[0].rows.shape[1],
                "trained": options.checkpoint is not None,
                "samples": options.samples,
                "seeds": options.seeds,
                "rows": rows,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
