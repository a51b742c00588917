"""One variant of an export, opened with onnxruntime, whose inputs are checked against the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from perception.runtime.errors import ModelError
from perception.runtime.manifest import Manifest, TensorSpec, check_files, graph_file, read_manifest

Arrays = dict[str, np.ndarray]


class Graph:
    """The graph alone: arrays in, arrays out. `Predictor` is what knows cameras, poses and streams.

    Args:
        folder: the export folder.
        variant: "fp32", "fp16" or "int8".
        num_threads: threads of onnxruntime within an operator; None leaves it to onnxruntime.
        providers: onnxruntime's execution providers, the first choice first.
        check_hashes: compare the graph's file with the manifest first.

    Raises:
        ModelError: the folder or the graph is damaged, onnxruntime is missing or cannot open it.
        ValueError: there is no such variant, or `num_threads` is below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        variant: str = "fp32",
        num_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        check_hashes: bool = True,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise ValueError(
                f"num_threads must be at least 1, got {num_threads}; None leaves it to onnxruntime."
            )
        self.manifest: Manifest = read_manifest(folder)
        self.path = graph_file(folder, self.manifest, variant)
        self.variant = variant
        if check_hashes:  # of this graph and its external data, if it has any
            names = [name for name in self.manifest.files if name.startswith(self.path.name)]
            check_files(folder, self.manifest, {self.path.name, *names})
        runtime = _onnxruntime(self.path)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = runtime.InferenceSession(str(self.path), options, providers=list(providers))
        except Exception as error:  # noqa: BLE001  onnxruntime's errors share no base but this
            raise ModelError(
                f"onnxruntime {runtime.__version__} cannot open the graph ({str(error).splitlines()[0]}). Export again "
                f"or install the version that the export was proven with, {self.manifest.versions.get('onnxruntime')}",
                path=self.path,
            ) from error
        self._check_signature()

    @property
    def batch_size(self) -> int | None:
        """Length of the batch axis that the graph was exported for; None: any."""
        size = self.manifest.inputs[0].shape[0]
        return size if isinstance(size, int) else None

    def empty_history(self, batch: int) -> np.ndarray:
        """`prev_bev` of streams that have none: zeros, (batch, Q, C) float32."""
        cells, channels = self.manifest.input("prev_bev").shape[1:]
        return np.zeros((batch, int(cells), int(channels)), np.float32)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """One pass.

        Args:
            inputs: an array for each of the manifest's inputs, of its dtype and shape.

        Returns:
            An array for each of the manifest's outputs.

        Raises:
            ValueError: an input is missing, unknown, or has another dtype or shape.
        """
        specs = {spec.name: spec for spec in self.manifest.inputs}
        if set(inputs) != set(specs):
            raise ValueError(
                f"the graph takes the inputs {', '.join(specs)}, got {', '.join(inputs) or 'none'}."
            )
        lengths: dict[str, int] = {}
        for name, array in inputs.items():
            _check_array(specs[name], array, lengths)
        names = [spec.name for spec in self.manifest.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def _check_signature(self) -> None:
        for kind, specs, found in (
            ("inputs", self.manifest.inputs, self._session.get_inputs()),
            ("outputs", self.manifest.outputs, self._session.get_outputs()),
        ):
            listed, actual = {spec.name for spec in specs}, {value.name for value in found}
            if listed != actual:
                raise ModelError(
                    f"the graph's {kind} are {sorted(actual)}, the manifest's {sorted(listed)}. Export again",
                    path=self.path,
                )


def _onnxruntime(path: Path) -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "onnxruntime is not installed, which runs the graph. `pip install onnxruntime`, or perception's extra "
            "`export`",
            path=path,
        ) from error
    return onnxruntime


def _check_array(spec: TensorSpec, array: np.ndarray, lengths: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(spec.dtype):
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{spec.name} must be an array of {spec.dtype}, got {found}.")
    fits = array.ndim == len(spec.shape)
    if fits:
        for length, wanted in zip(array.shape, spec.shape, strict=True):
            fits &= length == (wanted if isinstance(wanted, int) else lengths.setdefault(wanted, length))
    if not fits:
        known = {name: length for name, length in lengths.items() if name in spec.shape}
        where = f" with {known}" if known else ""
        raise ValueError(
            f"{spec.name} must be {spec.shape}{where}, got {array.shape}. {spec.description}".rstrip()
        )
