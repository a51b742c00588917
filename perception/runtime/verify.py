"""Does an export still do what its proof says? Hashes first, then the proof, with onnxruntime and NumPy alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perception.runtime.errors import ModelError
from perception.runtime.graph import Graph
from perception.runtime.manifest import check_files, graph_file, read_manifest
from perception.runtime.proof import Measured, Problem, Proof, check, compare_steps, read_proof, run_steps


@dataclass(frozen=True)
class VariantResult:
    """The repeated proof of one variant.

    Attributes:
        variant: "fp32", "fp16" or "int8".
        steps: how many were run.
        measured: as `compare_steps`.
        tolerances: output → what is allowed.
        problems: outputs that differ by more.
    """

    variant: str
    steps: int
    measured: Measured
    tolerances: Measured
    problems: list[Problem]

    def lines(self) -> list[str]:
        """A line per output."""
        bad = {problem.output for problem in self.problems}
        lines = []
        for name in (*self.measured, *(bad - set(self.measured))):
            found = self.measured.get(name, {})
            allowed = self.tolerances.get(name, {})
            values = [
                f"{measure} {value:.2e}"
                + (f" (allowed {allowed[measure]:.0e})" if measure in allowed else "")
                for measure, value in found.items()
                if measure != "count"
            ]
            if found.get("count") == 0:
                values = ["not compared: no box scores enough"]
            lines.append(
                f"{self.variant} {name:7s} {', '.join(values) or 'not measured'}{'  DIFFERS' if name in bad else ''}"
            )
        return lines


def verify_export(
    folder: str | Path,
    *,
    variants: Sequence[str] | None = None,
    num_threads: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[VariantResult]:
    """Check an export folder's files and repeat its proof.

    Args:
        folder: the export folder.
        variants: only these; None takes all that it has.
        num_threads: of onnxruntime.
        report: called with a line for each thing that was checked.

    Raises:
        ModelError: a file is missing or changed, or an output differs by more than its tolerance; the message names the
            outputs and the layers that make them.
        ValueError: there is no such variant.
    """
    manifest = read_manifest(folder)
    chosen = list(manifest.variants) if variants is None else list(variants)
    for variant in chosen:
        graph_file(folder, manifest, variant)
    check_files(folder, manifest)
    report(f"{len(manifest.files)} files have the hashes of the manifest")
    proof = read_proof(folder)
    results = []
    for variant in chosen:
        result = _repeat(folder, proof, variant, num_threads)
        for line in result.lines():
            report(line)
        results.append(result)
    problems = [f"{result.variant}: {problem}" for result in results for problem in result.problems]
    if problems:
        raise ModelError(
            "the graph does not do here what its proof says: "
            + "; ".join(problems)
            + ". Export again, or install the "
            f"onnxruntime that it was proven with, {manifest.versions.get('onnxruntime')}",
            path=folder,
        )
    return results


def _repeat(folder: str | Path, proof: Proof, variant: str, num_threads: int | None) -> VariantResult:
    graph = Graph(
        folder, variant=variant, num_threads=num_threads, check_hashes=False
    )  # all files were checked
    tolerances = proof.content["tolerances"].get(variant)
    if not tolerances:
        raise ModelError(f"the proof has no tolerances for the {variant} graph. Export again", path=folder)
    history = None
    if graph.manifest.has_history:
        history = graph.empty_history(len(proof.inputs[0]["images"]))
    found = run_steps(graph.run, proof.inputs, history)
    min_score = float(proof.content.get("min_score", {}).get(variant, 0.0))
    try:
        measured = compare_steps(proof.outputs, found, min_score=min_score)
    except ValueError as error:
        raise ModelError(
            f"the {variant} graph does not fit its proof: {error} Export again", path=folder
        ) from error
    return VariantResult(variant, len(proof.inputs), measured, tolerances, check(measured, tolerances))
