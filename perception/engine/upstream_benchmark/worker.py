"""One side of the comparison in a process of its own: it builds the modules and measures what standard input asks for.

Run as a script, `python worker.py SIDE ...`. The official side imports nothing of this package, because the mm packages
of then and of now can't share a process. One JSON request a line, one JSON answer a line.

Legend: B batch, N cameras, Q BEV cells, C channels, L decoder layers.
"""

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from torch import Tensor, nn

PLUGIN = "projects.mmdet3d_plugin"
OFFICIAL_CONFIG = "projects/configs/bevformer/bevformer_tiny.py"
# Packages whose __init__ imports data sets, evaluation and other detectors: entered without running it.
BARE_PACKAGES = (
    *("mmdet3d", "mmdet3d.core", "mmdet3d.core.bbox", "projects", PLUGIN),
    *(f"{PLUGIN}.{name}" for name in ("bevformer", "bevformer.modules", "bevformer.dense_heads")),
    *(f"{PLUGIN}.{name}" for name in ("core", "core.bbox", "core.bbox.coders", "models", "models.utils")),
)
OFFICIAL_MODULES = (
    *("core.bbox.coders.nms_free_coder", "bevformer.modules.transformer", "bevformer.modules.encoder"),
    *("bevformer.modules.decoder", "bevformer.dense_heads.bevformer_head"),
)
STUBBED = ("mmcv._ext",)
_NOISE = 0.02


@dataclass(frozen=True)
class Inputs:
    """What both sides get.

    features: (B, N, C, h, w), the neck's only level; requires grad, as in a training.
    lidar2img: (B, N, 4, 4), LiDAR metres → pixels.
    can_bus: (B, 18), float64.
    prev_bev: (B, Q, C).
    image_shape: (height, width), pixels.
    """

    features: Tensor
    lidar2img: Tensor
    can_bus: Tensor
    prev_bev: Tensor
    image_shape: tuple[int, int]

    @classmethod
    def read(cls, file: str | Path, batch: int) -> "Inputs":
        """The first `batch` samples of a file that `inputs.write_inputs` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        height, width = tensors.pop("image_shape").tolist()
        cut = {key: value[:batch].clone() for key, value in tensors.items()}
        cut["features"].requires_grad_()
        return cls(**cut, image_shape=(height, width))


class Side(Protocol):
    """Modules under measurement; outputs are class logits (L, B, q, 10) and box codes of the side's own order."""

    def modules(self) -> nn.Module:
        """All of them."""

    def encoder(self, inputs: Inputs) -> Tensor:
        """(B, Q, C)."""

    def decoder(self, inputs: Inputs, bev: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and codes from a BEV."""

    def whole(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and codes from image features."""

    def official_state(self) -> dict[str, Tensor]:
        """Weights by their official names."""

    def load_official_state(self, state: dict[str, Tensor]) -> None:
        """Take weights by their official names."""

    def to_our_codes(self, codes: Tensor) -> Tensor:
        """Codes in today's convention."""


class OfficialSide:
    """The official head, unmodified: what it imports is found in `deps`, and compiled extensions are stubs.

    Args:
        folder: the official repository.
        deps: folders that hold mmcv 1.4, mmdet 2.14, mmdet3d 0.17 and torchvision.

    Raises:
        ImportError: something is not in these folders.
    """

    def __init__(self, folder: Path, deps: Sequence[Path]) -> None:
        _import_official(folder, deps)
        config = importlib.import_module("mmcv").Config.fromfile(str(folder / OFFICIAL_CONFIG))
        # Without a training config no assigner is built; no loss is computed here.
        build = importlib.import_module("mmdet.models").build_head
        self.head = build({**config.model.pts_bbox_head, "train_cfg": None})
        self.head.init_weights()

    def modules(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.head
        return head

    def encoder(self, inputs: Inputs) -> Tensor:
        """(B, Q, C)."""
        # It overwrites the history in place.
        bev: Tensor = self.head(
            [inputs.features], _metas(inputs), prev_bev=inputs.prev_bev.clone(), only_bev=True
        )
        return bev

    def decoder(self, inputs: Inputs, bev: Tensor) -> tuple[Tensor, Tensor]:
        """The head's forward with the given BEV in the encoder's place."""
        self.head.transformer.get_bev_features = lambda *_, **__: bev
        try:
            return self.whole(inputs)
        finally:
            del self.head.transformer.get_bev_features

    def whole(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and codes."""
        outputs = self.head([inputs.features], _metas(inputs), prev_bev=inputs.prev_bev.clone())
        return outputs["all_cls_scores"], outputs["all_bbox_preds"]

    def official_state(self) -> dict[str, Tensor]:
        """Weights."""
        return {f"pts_bbox_head.{name}": value for name, value in self.head.state_dict().items()}

    def load_official_state(self, state: dict[str, Tensor]) -> None:
        """Take weights."""
        self.head.load_state_dict(
            {name.removeprefix("pts_bbox_head."): value for name, value in state.items()}
        )

    def to_our_codes(self, codes: Tensor) -> Tensor:
        """(..., 10): (w, l) → (l, w), and yaw → −yaw − π/2, as `perception.checkpoint.upstream` says."""
        sign = codes.new_tensor([1.0, 1, 1, 1, 1, 1, -1, -1, 1, 1])
        return codes[..., [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]] * sign


def measure(
    side: Side, inputs: Inputs, part: str, *, is_training: bool, clock: str = "wall"
) -> dict[str, float]:
    """Time one call, in seconds.

    Args:
        side: what is measured.
        inputs: its inputs.
        part: "encoder", "decoder" or "whole".
        is_training: with dropout and a backward pass; else without gradients.
        clock: "wall", or "cpu" for the process's own time.

    Returns:
        "eval_forward"; or "train_forward" and "train_forward_backward".
    """
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    modules = side.modules().train(is_training)
    bev = torch.randn(inputs.prev_bev.shape, generator=torch.Generator().manual_seed(1))
    bev.requires_grad_()
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "encoder": lambda: (side.encoder(inputs),),
        "decoder": lambda: side.decoder(inputs, bev),
        "whole": lambda: side.whole(inputs),
    }
    with torch.set_grad_enabled(is_training):
        start = now()
        outputs = calls[part]()
        middle = now()
        if not is_training:
            return {"eval_forward": middle - start}
        if part == "encoder":  # the sum of a layer norm's output has no gradient to speak of
            outputs = (outputs[0] * bev.detach(),)
        torch.stack([output.sum() for output in outputs]).sum().backward()
    end = now()
    for tensor in (*modules.parameters(), inputs.features):
        tensor.grad = None
    return {"train_forward": middle - start, "train_forward_backward": end - start}


def serve(side: Side, inputs_file: Path, requests: Iterable[str], answers: TextIO) -> None:
    """Answer requests until there are no more.

    Args:
        side: what is measured.
        inputs_file: as `Inputs.read`.
        requests: JSON lines with "do": "save" or "load" weights ("file"), "outputs" ("batch", "file"), or "measure"
            ("batch", "part", "is_training", "clock").
        answers: gets one JSON line each; {"error": ...} where the side can't.
    """
    inputs: dict[int, Inputs] = {}
    for line in requests:
        request = json.loads(line)
        batch = request.get("batch", 1)
        if batch not in inputs:
            inputs[batch] = Inputs.read(inputs_file, batch)
        try:
            answer = _answer(side, inputs[batch], request)
        except (
            RuntimeError,
            ValueError,
            IndexError,
            AssertionError,
        ) as error:  # e.g. upstream beyond batch 1
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(side: Side, inputs: Inputs, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "save":
        np.savez(request["file"], **{key: value.numpy() for key, value in side.official_state().items()})
    elif request["do"] == "load":
        with np.load(request["file"], allow_pickle=False) as arrays:
            side.load_official_state({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    elif request["do"] == "outputs":
        side.modules().eval()
        with torch.no_grad():
            scores, codes = side.whole(inputs)
            bev = side.encoder(inputs)
        np.savez(request["file"], bev=bev, scores=scores, codes=side.to_our_codes(codes))
    else:
        return measure(
            side,
            inputs,
            request["part"],
            is_training=request["is_training"],
            clock=request.get("clock", "wall"),
        )
    return {}


@torch.no_grad()
def add_noise(modules: nn.Module) -> None:
    """Move every trained weight a little: with the initial zeros, many mistakes would not show in the outputs."""
    generator = torch.Generator().manual_seed(0)
    for parameter in modules.parameters():
        if parameter.requires_grad:
            parameter += _NOISE * torch.randn(parameter.shape, generator=generator)


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the compiled extensions: modules that have every attribute, none of which does anything."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in STUBBED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _import_official(folder: Path, deps: Sequence[Path]) -> None:
    paths = [str(folder), *(str(path) for path in deps)]
    sys.path[:0] = paths
    _import_torchvision()
    sys.meta_path.insert(0, _Stubs())
    for name in BARE_PACKAGES:
        root = name.replace(".", "/")
        found = [f"{path}/{root}" for path in paths if Path(path, root).is_dir()]
        if not found:
            raise ImportError(f"no folder {root} in {', '.join(paths)}")
        package = types.ModuleType(name)
        package.__path__ = found
        sys.modules[name] = package
    for name in OFFICIAL_MODULES:
        importlib.import_module(f"{PLUGIN}.{name}")


def _import_torchvision() -> None:
    # Upstream turns the history with torchvision's rotate, in torch; torchvision's compiled operators, which may be for
    # another build of torch, only have to be known by name.
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        _import_torchvision.library = library  # type: ignore[attr-defined]  # it takes the names with it


def _metas(inputs: Inputs) -> list[dict[str, Any]]:
    cams = inputs.lidar2img.shape[1]
    return [
        {
            "can_bus": can_bus.numpy(),
            "lidar2img": list(lidar2img.numpy()),
            "img_shape": [(*inputs.image_shape, 3)] * cams,
        }
        for can_bus, lidar2img in zip(inputs.can_bus, inputs.lidar2img, strict=True)
    ]


def main(name: str, inputs_file: Path, threads: int, folders: Sequence[Path]) -> None:
    """Build a side and serve it.

    Args:
        name: "official", "ours" or "rebatching".
        inputs_file: as `Inputs.read`.
        threads: of torch.
        folders: the official repository and its dependencies.
    """
    # What packages print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    side: Side
    if name == "official":
        sys.path.pop(0)  # this file's folder
        side = OfficialSide(folders[0], folders[1:])
    else:
        from perception.engine.upstream_benchmark.ours import OurSide

        side = OurSide(is_rebatching=name == "rebatching")
    add_noise(side.modules())
    versions = {
        package: importlib.import_module(package).__version__
        for package in ("torch", "numpy", "mmcv", "mmdet", "torchvision")
        if package in sys.modules and hasattr(sys.modules[package], "__version__")
    }
    print(json.dumps({"ready": name, "versions": versions}), file=answers, flush=True)
    serve(side, inputs_file, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), [Path(folder) for folder in sys.argv[4:]])
