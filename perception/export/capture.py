"""From a graph module to an exported program, and from that to an ONNX model of standard operators."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from perception.export.graph_module import GraphModule
from perception.export.onnx_model import check_model, name_nodes

OPSET = 20
_LARGEST_SIDE = 8192
_LARGEST_BATCH = 256
_TAP = "tap_"


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX model and where to look into it.

    Attributes:
        model: the model.
        taps: layer group → names of what it makes inside the graph.
    """

    model: onnx.ModelProto
    taps: dict[str, list[str]]


def capture(module: GraphModule, example: dict[str, Tensor], *, is_batch_open: bool) -> Any:
    """`torch.export` of a module; images may have any height and width.

    Args:
        module: what is exported; in evaluation mode.
        example: inputs, of the shapes that are fixed; a batch of 2 or more where it is open.
        is_batch_open: whether the batch may have any size.

    Returns:
        The exported program.
    """
    sides = [torch.export.Dim(name, min=8, max=_LARGEST_SIDE) for name in ("height", "width")]
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    shapes = []
    for name, value in example.items():
        axes: dict[int, Any] = {0: batch} if is_batch_open else {}
        if name == "images":
            axes |= dict(zip((value.dim() - 3, value.dim() - 2), sides, strict=True))
        shapes.append(axes)
    with torch.no_grad(), _quiet():
        return torch.export.export(
            module, tuple(example.values()), dynamic_shapes=(tuple(shapes),), strict=False
        )


def to_onnx(module: GraphModule, program: Any) -> OnnxGraph:
    """Translate and check a program.

    Args:
        module: what `program` was captured from, with taps.
        program: the exported program.

    Raises:
        ValueError: the graph has operators outside ONNX's default domain, or is not valid.
    """
    spec = program.call_spec.out_spec
    numbers = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)  # output → its place
    names = sorted(numbers, key=numbers.__getitem__)
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            program,
            input_names=list(module.input_names),
            output_names=names,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    taps: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(_TAP):
            taps.setdefault(name.split("_")[1], []).append(name)
    outputs = {output.name: output for output in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in module.output_names)
    if "bev" in module.output_names:
        taps["encoder"] = ["bev"]
    taps["heads"] = [name for name in module.output_names if name != "bev"]
    name_nodes(model)
    check_model(model)
    return OnnxGraph(model, taps)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes to its own developers: operators of packages that are not there, and the like."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
