"""From a trained model to an ONNX graph of standard operators, with a numeric proof that both are one function.

Needs the extra `export`: onnx, onnxscript and onnxruntime.
"""

from perception.export.export_model import (
    ExportOptions,
    ExportResult,
    Format,
    Precision,
    build_graph,
    export_model,
)
from perception.export.proving import ProofError

__all__ = [
    "ExportOptions",
    "ExportResult",
    "Format",
    "Precision",
    "ProofError",
    "build_graph",
    "export_model",
]
