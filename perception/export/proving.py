"""The proof: every graph of a folder against the torch model on real samples, with carried history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.export.graph_module import GROUPS, GraphModule
from perception.export.onnx_model import with_outputs
from perception.export.samples import Arrays, Step
from perception.runtime.proof import (
    FORMAT,
    INPUTS_FILE,
    OUTPUTS_FILE,
    PROOF_FILE,
    Measured,
    check,
    compare_steps,
    run_steps,
    write_steps,
)
from perception.utils import write_json_atomic

TOLERANCES: dict[str, Measured] = {
    "fp32": {
        "boxes": {"max": 2e-3},
        "scores": {"max": 1e-4},
        "labels": {"max": 0.0},
        "seg": {"max": 1e-3},
        "bev": {"max": 1e-3},
    },
    "fp16": {
        "boxes": {"mean": 5e-2},
        "scores": {"max": 2e-2},
        "labels": {"mean": 0.02},
        "seg": {"mean": 2e-3},
        "bev": {"mean": 1e-2},
    },
    "int8": {
        "boxes": {"mean": 2.0},
        "scores": {"mean": 5e-2},
        "labels": {"mean": 0.2},
        "seg": {"mean": 5e-2},
        "bev": {"mean": 0.3},
    },
}
"""What outputs may differ by: rounding for fp32; for fp16 what its 11 bits leave; int8 is judged by its scores on a
data set, so that these limits only catch a graph that is broken."""
CLASS_MAPS: dict[str, Measured] = {
    variant: {"seg": {"mean": share}} for variant, share in (("fp32", 1e-4), ("fp16", 2e-3), ("int8", 5e-2))
}
"""Where a graph gives classes in place of probabilities, the share of pixels of another class: the last bit tells which
of two that are equally likely comes first."""
MIN_SCORE = {"fp32": 0.0, "fp16": 0.05, "int8": 0.1}
"""Boxes that score less are not compared."""
_GROUP_LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.2}


class ProofError(ValueError):
    """A graph does not do what its model does."""


@dataclass(frozen=True)
class Reference:
    """What torch made of some steps.

    Attributes:
        steps: the inputs.
        outputs: per step; with the history that the model carried itself.
        last: complete inputs of the last step.
        taps: what the layer groups made in the last step.
    """

    steps: Sequence[Step]
    outputs: list[Arrays]
    last: Arrays
    taps: Arrays


def run_reference(module: GraphModule, steps: Sequence[Step]) -> Reference:
    """Run the torch model itself, not its exported form."""
    found: list[Arrays] = []
    seen: list[tuple[Arrays, Arrays]] = []

    def run(inputs: Arrays) -> Arrays:
        tensors = [torch.from_numpy(inputs[name]) for name in module.input_names]
        with torch.no_grad():
            made = {name: value.numpy() for name, value in module(*tensors).items()}
        seen[:] = [(inputs, made)]
        return {name: made[name] for name in module.output_names}

    inputs = [_plain(module, step) for step in steps]
    found.extend(run_steps(run, inputs, empty_history(module, steps)))
    last, made = seen[0]
    taps = {name: value for name, value in made.items() if name.startswith("tap_")}
    return Reference(steps, found, last, taps)


def empty_history(module: GraphModule, steps: Sequence[Step]) -> np.ndarray | None:
    """`prev_bev` of a stream's start; None for a model without history."""
    if "prev_bev" not in module.input_names:
        return None
    batch = len(steps[0].inputs["images"])
    return module.example(batch, (8, 8))["prev_bev"].numpy()


def prove(
    folder: Path,
    variants: Mapping[str, str],
    module: GraphModule,
    steps: Sequence[Step],
    taps: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Measured]:
    """Run every graph on the steps, write the proof's files, and refuse what differs too much.

    Args:
        folder: where the graphs are and the proof goes.
        variants: "fp32", "fp16", "int8" → file.
        module: the model that they were made from.
        steps: real samples.
        taps: layer group → names inside the graphs.
        seconds: of the export's parts, for the record.

    Returns:
        Variant → output → differences.

    Raises:
        ProofError: names the variant, the outputs, and the first layer group that differs.
    """
    reference = run_reference(module, steps)
    allowed = {variant: _allowed(variant, module, reference.outputs[0]) for variant in variants}
    measured, groups, problems = {}, {}, []
    for variant, file in variants.items():
        found = run_steps(
            open_session(folder / file, module.output_names),
            [_plain(module, step) for step in steps],
            empty_history(module, steps),
        )
        measured[variant] = compare_steps(reference.outputs, found, min_score=MIN_SCORE[variant])
        groups[variant] = group_differences(folder / file, module, reference, taps)
        wrong = check(measured[variant], allowed[variant])
        if wrong:
            problems.append(
                f"{file}: {'; '.join(map(str, wrong))}. The first layer group that differs is "
                f"{first_group(groups[variant], _GROUP_LIMITS[variant])}"
            )
    write_steps(folder / INPUTS_FILE, [_plain(module, step) for step in steps])
    write_steps(folder / OUTPUTS_FILE, _without_early_bev(reference.outputs))
    content: dict[str, Any] = {
        "format": FORMAT,
        "steps": len(steps),
        "samples": [list(step.tokens) for step in steps],
        "tolerances": allowed,
        "measured": _finite(measured),
        "min_score": {variant: MIN_SCORE[variant] for variant in variants},
        "seconds": dict(seconds or {}),
        "groups": _finite(groups),
        "taps": {group: list(inner) for group, inner in taps.items()},
    }
    write_json_atomic(folder / PROOF_FILE, content)
    if problems:
        raise ProofError(f"the export is not the same function as the model: {' | '.join(problems)}")
    return measured


def prove_program(path: Path, module: GraphModule, steps: Sequence[Step]) -> Measured:
    """Run a torch package on the steps and refuse it where it differs from its model.

    Args:
        path: the `.pt2` file.
        module: the model that it was made from.
        steps: real samples.

    Raises:
        ProofError: names the outputs.
    """
    program = torch.export.load(path).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            made = program(*(torch.from_numpy(inputs[name]) for name in module.input_names))
        return {name: value.numpy() for name, value in made.items()}

    inputs = [_plain(module, step) for step in steps]
    found = run_steps(run, inputs, empty_history(module, steps))
    expected = run_reference(module, steps).outputs
    wrong = check(measured := compare_steps(expected, found), _allowed("fp32", module, expected[0]))
    if wrong:
        raise ProofError(f"{path.name} is not the same function as the model: {'; '.join(map(str, wrong))}")
    return measured


def open_session(model: Path | bytes, names: Sequence[str], *, num_threads: int | None = None) -> Any:
    """A function of NumPy arrays that runs a graph, as `run_steps` takes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(names, session.run(list(names), inputs), strict=True))


def group_differences(
    path: Path, module: GraphModule, reference: Reference, taps: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Layer group → largest difference of what it makes in the last step from torch, as a share of its largest value.

    The graph gets the history of torch, so that what differs, differs in this step.
    """
    expected = {**reference.taps, **reference.outputs[-1]}
    names = [name for group in GROUPS for name in taps.get(group, ()) if name not in ("boxes", "labels")]
    found = open_session(with_outputs(path, names), names)(reference.last)
    differences: dict[str, float] = {}
    for group in GROUPS:
        for name in taps.get(group, ()):
            if name in found:
                wanted = expected[name].astype(np.float64)
                diff = np.abs(found[name].astype(np.float64) - wanted).max() / max(
                    np.abs(wanted).max(), 1e-12
                )
                differences[group] = max(differences.get(group, 0.0), float(np.nan_to_num(diff, nan=np.inf)))
    return differences


def first_group(differences: Mapping[str, float], limit: float) -> str:
    """The first layer group that differs by more than rounding, or the one that differs most."""
    over = [group for group in GROUPS if differences.get(group, 0.0) > limit]
    group = over[0] if over else max(differences, key=differences.__getitem__)
    return f"the {group} (by {differences[group]:.2g} of its largest value)"


def _allowed(variant: str, module: GraphModule, outputs: Arrays) -> Measured:
    limits = TOLERANCES[variant]
    if "seg" in outputs and np.issubdtype(outputs["seg"].dtype, np.integer):
        limits = {**limits, **CLASS_MAPS[variant]}
    return {name: value for name, value in limits.items() if name in module.output_names}


def _plain(module: GraphModule, step: Step) -> Arrays:
    """A step's inputs as far as the module has them, without the history."""
    return {name: step.inputs[name] for name in module.input_names if name != "prev_bev"}


def _without_early_bev(outputs: Sequence[Arrays]) -> list[Arrays]:
    """BEV features of the last step only: they are large, and carry what went before."""
    early = [{name: value for name, value in step.items() if name != "bev"} for step in outputs[:-1]]
    return [*early, outputs[-1]]


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    return values if np.isfinite(values) else 1e300
