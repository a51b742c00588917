"""Loading pretrained backbone weights from a local file, safely."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from perception.utils import get_logger, sha256_file

CLASSIFIER = ("fc.",)
"""Prefixes of an image classifier's keys that a backbone has no use for."""


def load_backbone(backbone: nn.Module, path: str | None, sha256: str | None = None) -> None:
    """Load weights into a backbone, or say that it starts from scratch.

    Args:
        backbone: the module.
        path: a `.safetensors` file, or a `.pth` file of plain tensors (read with `weights_only=True`); None loads
            nothing.
        sha256: expected hash of the file; None checks nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the hash differs, the file holds more than tensors, or the keys do not fit the backbone.
    """
    logger = get_logger(__name__)
    if path is None:
        logger.info("the image backbone starts from scratch (no backbone_weights given)")
        return
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"backbone_weights {file} does not exist. Give the path of a local file, or None to start from scratch."
        )
    if sha256 is not None and sha256_file(file) != sha256:
        raise ValueError(
            f"the SHA-256 of {file} is {sha256_file(file)}, expected {sha256}. Get the file again."
        )
    state = _read(file)
    state = {key: value for key, value in state.items() if not key.startswith(CLASSIFIER)}
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"{file} does not fit the backbone: missing {missing[:5]} ({len(missing)} in all), unexpected "
            f"{unexpected[:5]} ({len(unexpected)} in all). Check depth and style of img_backbone."
        )
    logger.info("the image backbone starts from %s", file)


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, and code in a file is never run. Save its state dict as .safetensors."
        ) from error
    return state.get("state_dict", state)
