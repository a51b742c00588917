"""Latency of an export's graphs beside the torch model that they were made from, in one process, taking turns."""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.checkpoint import load_weights
from perception.config import config_from_json
from perception.export.export_model import FILES, WEIGHTS_FILE, make_graph
from perception.export.graph_module import GraphModule
from perception.export.model_loading import build_model
from perception.export.proving import empty_history, open_session
from perception.export.samples import Arrays, Step
from perception.runtime import read_manifest
from perception.runtime.proof import read_proof

Run = Callable[[], Any]
EAGER, COMPILED = "torch eager", "torch.compile"


def benchmark_export(
    folder: str | Path, *, num_rounds: int = 20, num_threads: int | None = None, with_compile: bool = True
) -> dict[str, Any]:
    """Measure one export folder on the samples of its proof.

    All candidates take turns, one pass each per round, so that what else the machine does meets all alike.

    Args:
        folder: the export.
        num_rounds: passes of each that are measured, after one that isn't.
        num_threads: of torch and onnxruntime within an operator; None: theirs.
        with_compile: also `torch.compile`, where there is a C++ compiler.

    Returns:
        JSON-able: "name", "batch", "threads", "bytes" (file → size), "seconds" (of the export), "steps" and
        "differences" (variant → output → largest difference of the proof), "ms" (candidate → median), "speedup" (over
        eager), "without" (candidate → why it was not measured) and "environment".

    Raises:
        ModelError: the folder is no export, or damaged.
    """
    folder = Path(folder)
    manifest, proof = read_manifest(folder), read_proof(folder)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    module = _rebuild(folder)
    step = Step(proof.inputs[-1], ())
    inputs = _complete(module, step)
    tensors = [torch.from_numpy(inputs[name]) for name in module.input_names]
    candidates: dict[str, Run] = {EAGER: lambda: _forward(module, tensors)}
    without: dict[str, str] = {}
    if not with_compile:
        without[COMPILED] = "left out"
    elif not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        without[COMPILED] = "no C++ compiler"
    else:
        compiled = torch.compile(module)
        candidates[COMPILED] = lambda: _forward(compiled, tensors)
    for variant in manifest.variants:
        session = open_session(folder / FILES[variant], module.output_names, num_threads=num_threads)
        candidates[f"onnxruntime {variant}"] = partial(session, inputs)
    for name in list(candidates):
        try:
            candidates[name]()
        except Exception as error:  # noqa: BLE001  torch's compiler fails in many ways, and is not what is exported
            if name != COMPILED:
                raise
            del candidates[name]
            without[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    medians = _take_turns(candidates, num_rounds)
    measured = proof.content.get("measured", {})
    return {
        "name": manifest.name,
        "folder": str(folder),
        "batch": len(inputs["images"]),
        "image": list(inputs["images"].shape[-3:-1])[::-1],
        "threads": num_threads or torch.get_num_threads(),
        "rounds": num_rounds,
        "bytes": {
            path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix != ".npz"
        },
        "seconds": proof.content.get("seconds", {}),
        "steps": proof.content["steps"],
        "differences": {
            variant: {output: values["max"] for output, values in outputs.items() if values.get("count", 1)}
            for variant, outputs in measured.items()
        },
        "ms": medians,
        "speedup": {name: round(medians[EAGER] / value, 3) for name, value in medians.items()},
        "without": without,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            **{package: version(package) for package in ("torch", "onnxruntime")},
        },
    }


def export_table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown tables of several results."""
    lines = ["| model | " + " | ".join(("file", "MB", "ms", "times eager", "largest differences")) + " |"]
    lines.append("| --- | --- | --: | --: | --: | --- |")
    for result in results:
        for name, value in result["ms"].items():
            variant = name.removeprefix("onnxruntime ")
            file = FILES.get(variant, "")
            size = f"{result['bytes'][file] / 1e6:.1f}" if file in result["bytes"] else ""
            found = result["differences"].get(variant, {})
            diff = ", ".join(f"{output} {high:.1e}" for output, high in found.items())
            speed = f"{result['speedup'][name]:.2f}"
            lines.append(f"| {result['name']}: {name} | {file} | {size} | {value:.1f} | {speed} | {diff} |")
    notes = [
        f"{result['name']}: batch {result['batch']}, images {result['image'][0]} × {result['image'][1]}, "
        f"{result['threads']} thread(s), medians of {result['rounds']} rounds, differences over {result['steps']} "
        f"frames; exported in {result['seconds'].get('onnx', float('nan')):.0f} s"
        + "".join(f"; {name}: {why}" for name, why in result["without"].items())
        for result in results
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _take_turns(candidates: dict[str, Run], num_rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(num_rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1e3 * statistics.median(found), 3) for name, found in seconds.items()}


def _rebuild(folder: Path) -> GraphModule:
    """The torch model of an export, from the config and the weights in the folder."""
    manifest = read_manifest(folder)
    model = build_model(config_from_json(manifest.training_config))
    model.load_state_dict(load_weights(folder / WEIGHTS_FILE).model_state)
    image = manifest.image
    assert isinstance(image.resize, tuple)
    module = make_graph(
        model.eval().requires_grad_(False),
        size=image.resize,
        interpolation=image.interpolation,
        crop_top=image.crop_top,
    )
    module.has_taps = False
    return module


def _complete(module: GraphModule, step: Step) -> Arrays:
    history = empty_history(module, [step])
    return dict(step.inputs) if history is None else {**step.inputs, "prev_bev": history + np.float32(0.1)}


def _forward(module: Any, tensors: list[torch.Tensor]) -> Any:
    with torch.no_grad():
        return module(*tensors)
