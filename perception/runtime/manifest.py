"""`model.json`: what an export folder holds, what goes into the graph and what comes out, with every file's SHA-256.

The manifest is sealed with a hash of its own content, so that a change of a range or a class name is noticed too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from perception.runtime.errors import ModelError
from perception.utils import did_you_mean, sha256_file, write_json_atomic

FORMAT = 1
MANIFEST_FILE = "model.json"
KINDS = ("bevformer", "fcos")
VARIANTS = ("fp32", "fp16", "int8")
_SEAL = "sha256"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of the graph.

    Attributes:
        name: as the graph has it.
        dtype: NumPy's name, e.g. "float32".
        shape: whole numbers, or names of axes that may have any length ("batch", "height", "width").
        unit: e.g. "m", "pixels", "0..1"; empty where there is none.
        frame: frame of reference, e.g. "LiDAR"; empty where there is none.
        description: what the axes and values mean.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    unit: str = ""
    frame: str = ""
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """Rows and columns of a map.

    Attributes:
        shape: (rows, columns); "height" and "width" where it is that of the given image.
        range: (x_min, y_min, x_max, y_max), LiDAR frame, metres; None for a map of the image's pixels.
        layout: which way rows and columns run.
    """

    shape: tuple[int | str, int | str]
    range: tuple[float, float, float, float] | None = None
    layout: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What the graph does with the images that it is given; for information, since all of it is inside the graph.

    Attributes:
        network_size: (width, height) of the backbone's input, without padding.
        source_size: (width, height) of the images that the export was proven with; others are stretched.
        color: order of the channels that the graph takes.
        mean: per channel, subtracted.
        std: per channel, divided by.
        resize: (width, height) that images are brought to, or a factor; None where they stay as they are.
        crop_top: rows cut off the top after that.
        pad_divisor: height and width are then padded to multiples of this, at the right and bottom.
        interpolation: of the resizing.
    """

    network_size: tuple[int | str, int | str]
    source_size: tuple[int, int] | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["rgb"] = "rgb"
    resize: tuple[int, int] | float | None = None
    crop_top: int = 0
    pad_divisor: int = 1
    interpolation: str = "bilinear"


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """When the history of a stream still holds, and what motion the model was trained with.

    Attributes:
        max_gap_s: longest time between two frames, seconds; after a longer one the history is dropped.
        max_jump_m: longest way between two frames, metres; likewise.
        motion: "lidar" (translation and heading of the LiDAR) or "upstream" (BEVFormer's own can_bus values).
    """

    max_gap_s: float = 2.0
    max_jump_m: float = 50.0
    motion: Literal["lidar", "upstream"] = "lidar"


@dataclass(frozen=True, kw_only=True)
class NMS:
    """What the runtime still does with 2D boxes: those of one class that overlap are thinned out.

    Attributes:
        iou: overlap above which the box with the lower score goes.
        score: boxes must score more.
        max_num: boxes per image at most.
    """

    iou: float
    score: float
    max_num: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of `model.json`.

    Attributes:
        kind: "bevformer" or "fcos".
        name: short name of the config.
        created: time of the export, ISO 8601, UTC.
        versions: of perception, torch, onnx, onnxruntime, and the opset.
        files: name → SHA-256 of every file of the folder but this one.
        variants: "fp32", "fp16", "int8" → the graph's file.
        inputs: of the graph, in its order.
        outputs: of the graph, in its order.
        classes: "boxes" and "seg" → class names by label; a head that the model lacks has none.
        cameras: names along the cameras' axis; none for a model of single images.
        image: what happens to the images inside.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max), LiDAR frame, metres; None for images.
        bev: cells of the BEV features; None for images.
        seg: pixels of the segmentation; None without one.
        streaming: limits of the history; None for a model without one.
        nms: what is left to do with 2D boxes; None where nothing is.
        training_config: the config that the model was trained with.
        checkpoint: "name", "sha256" and "step" of the weights.
        format: version of this form.
    """

    kind: str
    name: str
    created: str
    versions: Mapping[str, Any]
    variants: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: Mapping[str, tuple[str, ...]]
    image: ImageSpec
    training_config: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    point_cloud_range: tuple[float, ...] | None = None
    bev: GridSpec | None = None
    seg: GridSpec | None = None
    streaming: Streaming | None = None
    nms: NMS | None = None
    format: int = FORMAT

    @property
    def has_history(self) -> bool:
        """Whether BEV features of the previous frame go in and those of this one come out."""
        return any(spec.name == "prev_bev" for spec in self.inputs)

    def input(self, name: str) -> TensorSpec:
        """The input of a name.

        Raises:
            KeyError: there is none.
        """
        return {spec.name: spec for spec in self.inputs}[name]


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder with a `model.json`."""
    return (Path(path) / MANIFEST_FILE).is_file()


def write_manifest(folder: str | Path, manifest: Manifest) -> Manifest:
    """Hash the folder's files and write `model.json`.

    Returns:
        The manifest with these hashes.

    Raises:
        ModelError: a variant's file is not in the folder.
        OSError: the folder is not writable.
    """
    folder = Path(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    for variant, name in manifest.variants.items():
        if name not in names:
            raise ModelError(f"there is no {name}, the {variant} graph", path=folder)
    manifest = replace(manifest, files={name: sha256_file(folder / name) for name in names})
    content = asdict(manifest)
    write_json_atomic(folder / MANIFEST_FILE, {**content, _SEAL: _seal(content)})
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read `model.json`; the files it lists are looked at by `check_files`.

    Raises:
        ModelError: there is none, or it is damaged, of a newer format or of an unknown kind.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Give the folder that `perception export CONFIG CHECKPOINT --out DIR` wrote"
        raise ModelError(
            f"there is no {MANIFEST_FILE}, so this is no export folder. {remedy}", path=folder
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{MANIFEST_FILE} is not readable JSON ({error}). Export again", path=path
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ModelError(
            f"{MANIFEST_FILE} names no format, so it is not one of ours. Export again", path=path
        )
    if content["format"] != FORMAT:
        remedy = "Update perception" if content["format"] > FORMAT else "Export again"
        raise ModelError(
            f"{MANIFEST_FILE} has format {content['format']}, this version reads {FORMAT}. {remedy}",
            path=path,
        )
    sealed = content.pop(_SEAL, None)
    if sealed != _seal(content):
        raise ModelError(
            f"{MANIFEST_FILE} was changed after the export: expected sha256 {sealed} of its content, actual "
            f"{_seal(content)}. Export again; limits of the history can be set where the model is opened",
            path=path,
        )
    try:
        manifest = _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{MANIFEST_FILE} is not complete ({type(error).__name__}: {error}). Export again", path=path
        ) from error
    if manifest.kind not in KINDS:
        raise ModelError(
            f"{MANIFEST_FILE} is of a model of kind {manifest.kind!r}, known are {', '.join(KINDS)}. Update perception",
            path=path,
        )
    outside = [name for name in (*manifest.files, *manifest.variants.values()) if Path(name).name != name]
    if outside:
        raise ModelError(f"{MANIFEST_FILE} names {outside[0]!r}, a file outside its folder", path=path)
    return manifest


def check_files(folder: str | Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compare files' SHA-256 with the manifest's.

    Args:
        folder: the export folder.
        manifest: its manifest.
        names: only these files; None takes all that the manifest lists.

    Raises:
        ModelError: a file is missing, not listed or has another hash; the message has both.
    """
    folder = Path(folder)
    for name in manifest.files if names is None else names:
        expected = manifest.files.get(name)
        if expected is None:
            raise ModelError(f"{MANIFEST_FILE} has no hash of {name}. Export again", path=folder / name)
        if not (folder / name).is_file():
            raise ModelError(
                f"{name} is missing (expected sha256 {expected}). Export again", path=folder / name
            )
        actual = sha256_file(folder / name)
        if actual != expected:
            raise ModelError(
                f"{name} is damaged or was exchanged: expected sha256 {expected}, actual {actual}. Export again, or "
                "copy the folder again as a whole",
                path=folder / name,
            )


def graph_file(folder: str | Path, manifest: Manifest, variant: str) -> Path:
    """The file of a variant.

    Raises:
        ValueError: the folder has no such variant.
    """
    if variant not in manifest.variants:
        has = ", ".join(manifest.variants) or "no graph"
        hint = did_you_mean(variant, manifest.variants)
        raise ValueError(
            f"{folder} has no variant {variant!r}, it has {has}.{hint} `perception export` writes fp16 and int8 with "
            "--precision."
        )
    return Path(folder) / manifest.variants[variant]


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _from_json(content: Mapping[str, Any]) -> Manifest:
    known = {name: content[name] for name in Manifest.__dataclass_fields__ if name in content}
    parts = {"bev": GridSpec, "seg": GridSpec, "streaming": Streaming, "nms": NMS}
    built = {
        name: _build(kind, content[name]) for name, kind in parts.items() if content.get(name) is not None
    }
    known |= built | {
        "inputs": tuple(_build(TensorSpec, spec) for spec in content["inputs"]),
        "outputs": tuple(_build(TensorSpec, spec) for spec in content["outputs"]),
        "image": _build(ImageSpec, content["image"]),
        "classes": {head: tuple(names) for head, names in content["classes"].items()},
        "cameras": tuple(content.get("cameras", ())),
    }
    if content.get("point_cloud_range") is not None:
        known["point_cloud_range"] = tuple(content["point_cloud_range"])
    return Manifest(**known)


def _build(kind: Any, content: Mapping[str, Any]) -> Any:
    values = {name: content[name] for name in kind.__dataclass_fields__ if name in content}
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
