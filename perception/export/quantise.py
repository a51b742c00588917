"""A graph with 8-bit convolutions and linear layers, calibrated on real samples."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from perception.export.onnx_model import check_model, scope_of
from perception.export.proving import open_session
from perception.export.samples import Arrays, Step
from perception.runtime.proof import run_steps

_QUANTISED = ("img_backbone", "img_neck", "seg_head")
"""Scopes whose convolutions are quantised: nearly all of a model's products."""
_LINEAR = ("ffn", "value_proj", "output_proj", "out_proj")
"""Linear layers that are: those whose results aren't positions, attention weights, scores or boxes."""


def to_int8(
    source: Path,
    target: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    steps: Sequence[Step],
    empty_history: np.ndarray | None,
) -> None:
    """Quantise a float32 graph statically, as onnxruntime does it, with QuantizeLinear and DequantizeLinear nodes.

    Weights have a scale per channel and 7 bits, which processors without VNNI need: their 8-bit products overflow.

    Args:
        source: file of the float32 graph.
        target: file for the result.
        input_names: of the graph.
        output_names: of the graph.
        steps: the samples that activations' ranges are taken from; the history is the float32 graph's own.
        empty_history: `prev_bev` of a stream's start; None for a model without history.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(str(source))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime advises to fuse norms first, which the export has done
    try:
        quantize_static(
            model,
            str(target),
            _Reader(_inputs(source, input_names, output_names, steps, empty_history)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_quantize=_choose(model),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        root.setLevel(level)
    check_model(onnx.load(str(target)))


def _choose(model: onnx.ModelProto) -> list[str]:
    def is_chosen(node: onnx.NodeProto) -> bool:
        scope = scope_of(node)
        if node.op_type == "Conv":
            return scope.startswith(_QUANTISED)
        return node.op_type in ("MatMul", "Gemm") and any(part in scope.split(".") for part in _LINEAR)

    return [node.name for node in model.graph.node if is_chosen(node)]


def _inputs(
    source: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    steps: Sequence[Step],
    empty_history: np.ndarray | None,
) -> Iterator[Arrays]:
    """Complete inputs of each step, the history as the float32 graph carries it."""
    run = open_session(source, output_names)
    seen: list[Arrays] = []

    def note(inputs: Arrays) -> Mapping[str, Any]:
        seen[:] = [inputs]
        return run(inputs)

    plain = [{name: step.inputs[name] for name in input_names if name != "prev_bev"} for step in steps]
    for _ in run_steps(note, plain, empty_history):
        yield seen[0]


class _Reader:
    """What onnxruntime's calibration asks for inputs."""

    def __init__(self, inputs: Iterator[Arrays]) -> None:
        self._inputs = inputs

    def get_next(self) -> Arrays | None:
        """The next inputs; None at the end."""
        return next(self._inputs, None)
