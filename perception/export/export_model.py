"""From a config and a checkpoint to a folder that is deployed: graphs, weights, manifest, proof."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from perception.config import ConfigError
from perception.export.capture import capture, to_onnx
from perception.export.describe import describe
from perception.export.graph_module import BEVFormerGraph, FCOSGraph, GraphModule
from perception.export.half import to_half
from perception.export.model_loading import load_model
from perception.export.onnx_model import save_model
from perception.export.prepare_images import PrepareImages
from perception.export.proving import empty_history, prove, prove_program
from perception.export.quantise import to_int8
from perception.export.samples import Samples
from perception.models import BEVFormer
from perception.runtime import is_export, write_manifest
from perception.runtime.proof import Measured
from perception.utils import get_logger

Precision = Literal["fp32", "fp16", "int8"]
Format = Literal["onnx", "torch"]
FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
TORCH_FILE, WEIGHTS_FILE = "model.pt2", "weights.safetensors"

logger = get_logger("export")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how it is proven.

    Attributes:
        formats: "onnx", "torch" or both.
        precisions: of the ONNX graphs; fp32 is always written, as the others are made from it.
        batch: the graph's; None: any.
        num_steps: frames of the proof.
        num_calibration: training samples from which int8 takes the ranges of its activations.
        overwrite: replace an export that is there.

    Raises:
        ConfigError: options that don't go together.
    """

    formats: Sequence[Format] = ("onnx",)
    precisions: Sequence[Precision] = ("fp32",)
    batch: int | None = 1
    num_steps: int = 4
    num_calibration: int = 32
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, values, kinds in (
            ("--format", self.formats, get_args(Format)),
            ("--precision", self.precisions, get_args(Precision)),
        ):
            unknown = [value for value in values if value not in kinds]
            if unknown or not values:
                raise ConfigError(f"{name} is {' '.join(unknown) or 'empty'}; allowed: {', '.join(kinds)}")
        smaller = [precision for precision in self.precisions if precision != "fp32"]
        if smaller and "onnx" not in self.formats:
            raise ConfigError(
                f"--precision {' '.join(smaller)} is for ONNX graphs; torch packages are fp32. Add --format onnx"
            )
        for name, number in (
            ("steps", self.num_steps),
            ("calibrate", self.num_calibration),
            ("batch", self.batch),
        ):
            if number is not None and number < 1:
                raise ConfigError(f"--{name} must be at least 1, got {number}")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        folder: the export.
        sizes: file → bytes.
        seconds: what → how long it took.
        measured: variant → output → differences from torch.
    """

    folder: Path
    sizes: dict[str, int]
    seconds: dict[str, float]
    measured: dict[str, Measured]


def export_model(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    *,
    name: str = "model",
    options: ExportOptions | None = None,
) -> ExportResult:
    """Export a model and prove it.

    Everything is written beside `out` first and moved there when it is proven.

    Args:
        cfg: the config that the model was trained with; not changed.
        checkpoint: run folder, step folder or `.safetensors` file.
        out: the folder, which must not exist or be empty; or be an export, with `overwrite`.
        name: short name of the config, for the manifest.
        options: what and how; None: fp32 ONNX for single frames.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged or of another model.
        ConfigError: the options, the pipeline or the model can't be exported, or `out` is in use.
        DataError: the data set of the proof is missing or damaged.
        ProofError: a graph differs from the model by more than its tolerance; nothing is left behind.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    options = options or ExportOptions()
    out = Path(out)
    check_target(out, overwrite=options.overwrite)
    clock = _Clock()
    loaded = clock.time("load", lambda: load_model(cfg, checkpoint))
    samples = Samples(cfg)
    module, source_size = build_graph(loaded.model, samples)
    folder = out.with_name(f".{out.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        state = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        variants: dict[str, str] = {}
        measured: dict[str, Measured] = {}
        batch = options.batch or 2
        example = module.example(batch, source_size)
        is_open = options.batch is None
        steps = list(samples.stream(options.num_steps, batch))
        if "torch" in options.formats:
            clock.time("torch", lambda: _save_program(module, example, folder / TORCH_FILE, is_open=is_open))
            measured["torch"] = clock.time(
                "torch proof", lambda: prove_program(folder / TORCH_FILE, module, steps)
            )
        if "onnx" in options.formats:
            graph = clock.time(
                "onnx", lambda: to_onnx(module, capture(module, example, is_batch_open=is_open))
            )
            save_model(graph.model, folder / FILES["fp32"])
            variants["fp32"] = FILES["fp32"]
            if "fp16" in options.precisions:
                half = clock.time("fp16", lambda: to_half(graph.model))
                save_model(half, folder / FILES["fp16"])
                variants["fp16"] = FILES["fp16"]
            if "int8" in options.precisions:
                clock.time("int8", lambda: _quantise(cfg, module, folder, options))
                variants["int8"] = FILES["int8"]
            measured |= clock.time(
                "proof", lambda: prove(folder, variants, module, steps, graph.taps, clock.seconds)
            )
        shapes = {**steps[0].inputs, **_outputs(module, example, steps[0].inputs)}
        manifest = describe(
            cfg,
            name,
            module,
            samples,
            loaded.checkpoint,
            {key: list(value.shape) for key, value in shapes.items()},
            batch=options.batch,
            source_size=source_size,
            variants=variants,
        )
        write_manifest(folder, manifest)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return ExportResult(folder=out, sizes=sizes, seconds=clock.seconds, measured=measured)


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: it does.
    """
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_export(out):
        raise ConfigError(f"--out {out} holds other files than an export; give another folder")
    if not overwrite:
        raise ConfigError(f"--out {out} holds an export already; give another folder, or --overwrite")


def build_graph(model: torch.nn.Module, samples: Samples) -> tuple[GraphModule, tuple[int, int]]:
    """The function to export, and (width, height) of the samples' images."""
    source_size, size = samples.sizes()
    steps = samples.steps
    module = make_graph(model, size=size, interpolation=steps.interpolation, crop_top=steps.crop_top)
    return module, source_size


def make_graph(
    model: torch.nn.Module, *, size: tuple[int, int], interpolation: str, crop_top: int
) -> GraphModule:
    """A model with what is done to its images, see `PrepareImages`."""
    prepare = PrepareImages(
        model.data_preprocessor, size=size, interpolation=interpolation, crop_top=crop_top
    )
    kind: Any = BEVFormerGraph if isinstance(model, BEVFormer) else FCOSGraph
    return kind(model, prepare).eval()


def _outputs(
    module: GraphModule, example: dict[str, torch.Tensor], real: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Shapes of inputs and outputs, from one pass of torch; on real cameras, as those of the example all see alike."""
    inputs = {
        name: torch.from_numpy(real[name]) if name in real else value for name, value in example.items()
    }
    with torch.no_grad():
        found = module(*inputs.values())
    return {**inputs, **{name: found[name] for name in module.output_names}}


def _save_program(
    module: GraphModule, example: dict[str, torch.Tensor], path: Path, *, is_open: bool
) -> None:
    module.has_taps = False
    torch.export.save(capture(module, example, is_batch_open=is_open), path)
    module.has_taps = True


def _quantise(cfg: Config, module: GraphModule, folder: Path, options: ExportOptions) -> None:
    samples = Samples(cfg, "train")
    batch = options.batch or 1
    steps = list(samples.stream(-(-options.num_calibration // batch), batch))
    to_int8(
        folder / FILES["fp32"],
        folder / FILES["int8"],
        module.input_names,
        module.output_names,
        steps,
        empty_history(module, steps),
    )


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, what: str, do: Callable[[], Any]) -> Any:
        """Do it, and note how long it took."""
        start = time.perf_counter()
        result = do()
        self.seconds[what] = round(time.perf_counter() - start, 3)
        logger.info("%s: %.1f s", what, self.seconds[what])
        return result
