"""Inference on an exported model. NumPy and onnxruntime only; nothing here imports torch."""

from perception.runtime.errors import ModelError
from perception.runtime.manifest import (
    FORMAT,
    MANIFEST_FILE,
    NMS,
    VARIANTS,
    GridSpec,
    ImageSpec,
    Manifest,
    Streaming,
    TensorSpec,
    check_files,
    graph_file,
    is_export,
    read_manifest,
    write_manifest,
)

__all__ = [
    "FORMAT",
    "MANIFEST_FILE",
    "NMS",
    "VARIANTS",
    "GridSpec",
    "ImageSpec",
    "Manifest",
    "ModelError",
    "Streaming",
    "TensorSpec",
    "check_files",
    "graph_file",
    "is_export",
    "read_manifest",
    "write_manifest",
]
