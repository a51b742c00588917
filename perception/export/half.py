"""A graph in mixed precision: products in float16, everything else in float32."""

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from perception.export.onnx_model import check_model, scope_of

_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
# What may follow a product in float16: it neither adds up many numbers nor makes large ones.
_FOLLOWERS = {
    "Relu", "MaxPool", "Add", "Concat", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice",
    "Split", "Gather", "Expand", "Identity",
}  # fmt: skip
_KEPT = ("graph", "prepare", "bev_encoder.can_bus_mlp", "box_head.reg_branches", "box_head.reference_points")
"""Scopes in float32: geometry, motion in metres, and what moves boxes."""
_LARGEST = 65504.0


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert convolutions and matrix products, with their weights, to float16.

    *Source*: the lists of automatic mixed precision (Micikevicius et al. 2018). Inputs and outputs of the graph, the
    projection into the cameras, sampling positions, norms, softmax and box decoding stay in float32.

    Args:
        model: a float32 graph whose nodes are named after their modules; not changed.

    Raises:
        ValueError: a weight is beyond float16's range.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    converter = _Converter(graph)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.extend(converter.convert(node))
    for output in graph.output:
        if output.name in converter.is_half:
            raise ValueError(f"the output {output.name} would be float16")
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *converter.weights])
    del graph.value_info[:]  # types have changed; shape inference finds them again
    check_model(model)
    return model


class _Converter:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.is_half: set[str] = set()
        self.weights: list[TensorProto] = []
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        self._cast: dict[tuple[str, int], str] = {}
        self._float = _float_values(graph)

    def convert(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node in its precision, with the casts that go before it."""
        if self._becomes_half(node):
            casts = self._feed(node, TensorProto.FLOAT16)
            self.is_half.update(node.output)
            return [*casts, node]
        return [*self._feed(node, TensorProto.FLOAT), node]

    def _becomes_half(self, node: onnx.NodeProto) -> bool:
        if any(name in self._outputs for name in node.output):
            return False
        if scope_of(node).startswith(_KEPT):
            return False
        if node.op_type in _PRODUCTS:
            return True
        values = [name for name in node.input if name in self._float and name not in self._initializers]
        return node.op_type in _FOLLOWERS and bool(values) and all(name in self.is_half for name in values)

    def _feed(self, node: onnx.NodeProto, kind: int) -> list[onnx.NodeProto]:
        casts = []
        for place, name in enumerate(node.input):
            wants_half = kind == TensorProto.FLOAT16
            if name not in self._float or (name in self.is_half) == wants_half:
                continue
            key = (name, kind)
            if key not in self._cast:
                self._cast[key] = f"{name}.{'half' if wants_half else 'float'}"
                if name in self._initializers:
                    self.weights.append(_half_tensor(self._initializers[name], self._cast[key]))
                else:
                    casts.append(
                        helper.make_node(
                            "Cast", [name], [self._cast[key]], name=f"{node.name}/Cast_{place}", to=kind
                        )
                    )
            node.input[place] = self._cast[key]
        return casts


def _float_values(graph: onnx.GraphProto) -> set[str]:
    """Names of the graph's float32 values."""
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    finite = np.isfinite(values)
    if np.abs(values[finite]).max(initial=0.0) > _LARGEST:
        raise ValueError(
            f"the weight {tensor.name} is beyond float16's range of ±{_LARGEST:.0f}; export fp32 alone"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)
