"""Inference on an exported model. NumPy and onnxruntime only; nothing here imports torch."""

from perception.runtime.attributes import ATTRIBUTES, MOVING_SPEED, attribute_of
from perception.runtime.errors import ModelError
from perception.runtime.frame import Camera, Frame
from perception.runtime.geometry import invert_pose, pose_matrix
from perception.runtime.graph import Graph
from perception.runtime.image_predictor import ImagePredictor, thin_out
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
from perception.runtime.prediction import Boxes, ImagePrediction, Prediction
from perception.runtime.predictor import Predictor
from perception.runtime.verify import VariantResult, verify_export

__all__ = [
    "ATTRIBUTES",
    "FORMAT",
    "MANIFEST_FILE",
    "MOVING_SPEED",
    "NMS",
    "VARIANTS",
    "Boxes",
    "Camera",
    "Frame",
    "Graph",
    "GridSpec",
    "ImagePrediction",
    "ImagePredictor",
    "ImageSpec",
    "Manifest",
    "ModelError",
    "Prediction",
    "Predictor",
    "Streaming",
    "TensorSpec",
    "VariantResult",
    "attribute_of",
    "check_files",
    "graph_file",
    "invert_pose",
    "is_export",
    "pose_matrix",
    "read_manifest",
    "thin_out",
    "verify_export",
    "write_manifest",
]
