"""ONNX models: readable names, checks, files."""

import ast
from pathlib import Path

import onnx
from onnx import shape_inference

from perception.utils import write_bytes_atomic

_SCOPES = "pkg.torch.onnx.name_scopes"
_LARGEST_FILE = 1_900_000_000  # a protobuf ends at 2 GiB


def name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes after the modules that they come from, and remove notes about the machine that made them.

    "img_backbone.layer1.0.conv1/Conv_12" is the operator of that layer; what belongs to no layer is "graph/…".
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        path = [scope for scope in ast.literal_eval(scopes)[:-1] if scope and not scope.startswith("_")]
        if (
            "Conv" in node.op_type and node.input[1] in weights
        ):  # a norm behind it is part of it, and named it
            path.append(node.input[1].rpartition(".")[0])
        scope = path[-1].removeprefix("model.") if path else "graph"
        node.name = f"{scope}/{node.op_type}_{number}"
        node.doc_string = ""
        del node.metadata_props[:]
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    graph.doc_string = model.doc_string = ""
    del graph.metadata_props[:]
    del model.metadata_props[:]


def scope_of(node: onnx.NodeProto) -> str:
    """Path of the module that a node comes from."""
    return node.name.partition("/")[0]


def operators(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Domain → its operators, of the graph and its subgraphs; ONNX's own domain is ""."""
    found: dict[str, set[str]] = {}
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            found.setdefault("" if node.domain == "ai.onnx" else node.domain, set()).add(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def check_model(model: onnx.ModelProto) -> None:
    """Check a model with full shape inference, and that it has standard operators only.

    Raises:
        ValueError: it is not valid, or has other operators or functions.
    """
    others = {domain: sorted(names) for domain, names in operators(model).items() if domain}
    if others or model.functions:
        raise ValueError(
            f"the graph has operators outside ONNX's default domain: {others or [f.name for f in model.functions]}. "
            "No runtime but the one that knows them could run it; take these layers out of the model"
        )
    try:
        if model.ByteSize() < _LARGEST_FILE:
            onnx.checker.check_model(model, full_check=True)
            shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ValueError(f"the exported graph is not valid ONNX: {error}") from error


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; weights go to a file beside it where one file can't hold them."""
    if model.ByteSize() < _LARGEST_FILE:
        write_bytes_atomic(path, model.SerializeToString())
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def with_outputs(path: Path, names: list[str]) -> bytes:
    """A model's bytes with inner values among its outputs, as far as it has them."""
    model = onnx.load(str(path))
    made = {name for node in model.graph.node for name in node.output}
    known = {output.name for output in model.graph.output}
    for name in names:
        if name in made and name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return model.SerializeToString()
