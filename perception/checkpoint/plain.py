"""What may enter a checkpoint: tensors, and values that JSON can express. Nothing else, so nothing can run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perception.checkpoint.errors import CheckpointError


def check_plain(content: Any, *, name: str, path: str) -> None:
    """Refuse anything but tensors, None, bool, int, float, str, and lists, tuples and dicts of them.

    Raises:
        CheckpointError: names the key and the type found.
    """
    if content is None or type(content) in (bool, int, float, str):
        return
    if isinstance(content, Tensor):
        return
    if isinstance(content, Mapping):
        for key, value in content.items():
            if type(key) not in (str, int):
                raise CheckpointError(
                    f"key {key!r} of {name} is {type(key).__name__}; allowed: str, int", path=path
                )
            check_plain(value, name=f"{name}[{key!r}]", path=path)
        return
    if type(content) in (list, tuple):
        for index, value in enumerate(content):
            check_plain(value, name=f"{name}[{index}]", path=path)
        return
    raise CheckpointError(
        f"{name} is a {type(content).__module__}.{type(content).__name__}; a checkpoint holds tensors and "
        "JSON-able values only. Convert it in the owner's state_dict()",
        path=path,
    )


def first_non_finite(content: Any, *, name: str) -> str | None:
    """Name of the first NaN or infinity in nested tensors and floats, None if there is none."""
    if isinstance(content, Tensor):
        if content.is_floating_point() or content.is_complex():
            return None if bool(torch.isfinite(content).all()) else name
        return None
    if isinstance(content, float):
        return None if math.isfinite(content) else name
    if isinstance(content, Mapping):
        items = [(f"{name}[{key!r}]", value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        items = [(f"{name}[{index}]", value) for index, value in enumerate(content)]
    else:
        return None
    for item_name, value in items:
        found = first_non_finite(value, name=item_name)
        if found is not None:
            return found
    return None


def detach_model_state(model_state: Mapping[str, Any], *, path: str) -> dict[str, Tensor]:
    """CPU copies of a state dict's tensors, each with storage of its own, as safetensors wants them.

    Raises:
        CheckpointError: an entry is not a tensor.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model_state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the model's state {key!r} is a {type(value).__name__}, not a tensor. Register it as a "
                "buffer",
                path=path,
            )
        tensor = value.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    return tensors
