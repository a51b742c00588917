from typing import Literal, TypedDict

import pytest
import torch

from perception.config import list_configs, load_config
from perception.config.signature import scalar_problem, signature_of, typed_dict_keys
from perception.config.static_signature import static_signature
from perception.config.walk import walk_config


class Base:
    def __init__(self, *, depth: int, width: int = 1) -> None: ...


class Open(Base):
    def __init__(self, name: str, **kwargs) -> None: ...


class Closed(Base):
    def __init__(self, name: str) -> None: ...


class Mixin:
    def __init__(self, first, *args, **kwargs) -> None: ...


class Both(Mixin, Base): ...


class Network(torch.nn.Module):
    def __init__(self, channels: int, **kwargs) -> None: ...


@pytest.mark.parametrize(
    ("target", "keys", "required"),
    [
        (Base, {"depth", "width"}, {"depth"}),
        (Open, {"name", "depth", "width"}, {"name", "depth"}),
        (Closed, {"name"}, {"name"}),
        (Both, {"first", "depth", "width"}, {"first", "depth"}),
        (Network, {"channels"}, {"channels"}),
    ],
)
def test_keys_of_a_constructor(target, keys, required):
    signature = signature_of(target)
    assert set(signature.keys) == keys
    assert signature.required == required


@pytest.mark.parametrize("name", [config.short for config in list_configs()])
def test_reading_sources_agrees_with_importing(name):
    root = load_config(name)._cfg_dict
    read = {place.path: place.accepted for place in walk_config(root, is_static=True)}
    imported = {place.path: place.accepted for place in walk_config(root)}
    assert read.keys() == imported.keys()
    other = {path for path in read if read[path] != imported[path]}
    # A registry's own name for mmcv's operator, and the keys of a TypedDict: only an import tells what stands behind.
    assert all(
        read[path] is None and _dict_at(root, path).get("type", "TypedDict") in ("DCNv2", "TypedDict")
        for path in other
    )


def _dict_at(root, path):
    for key in path.split("."):
        root = root[int(key) if isinstance(root, list | tuple) else key]
    return root


def test_unknown_sources_give_nothing():
    assert static_signature("no_such_package.Thing") is None
    assert static_signature("torch.optim.NoSuchOptimizer") is None


@pytest.mark.parametrize(
    ("value", "annotation", "is_fine"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (1.5, int, False),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ("x", list[int], True),
        ("x", int | list[int], True),
    ],
)
def test_plain_values(value, annotation, is_fine):
    assert (scalar_problem(value, annotation) is None) is is_fine


def test_typed_dict_keys():
    class Options(TypedDict):
        low: float
        high: float

    assert set(typed_dict_keys(Options | None)) == {"low", "high"}
    assert typed_dict_keys(dict[str, int]) is None
