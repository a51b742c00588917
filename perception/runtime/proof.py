"""The proof that a graph is the same function as the model it was exported from: inputs, torch's outputs, a comparison.

| file | content |
| --- | --- |
| `proof_inputs.npz` | `<step>/<input>`: images, calibrations, motion; `prev_bev` is the previous step's own output |
| `proof_outputs.npz` | `<step>/<output>`: what torch made of them; large ones may be left out of some steps |
| `proof.json` | format, steps, tolerances and what was measured, per variant and output |
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.runtime.errors import ModelError
from perception.utils import read_json

FORMAT = 1
PROOF_FILE = "proof.json"
INPUTS_FILE = "proof_inputs.npz"
OUTPUTS_FILE = "proof_outputs.npz"

GROUPS = {
    "bev": "image backbone, neck and BEV encoder",
    "boxes": "box head",
    "scores": "box head",
    "labels": "box head",
    "seg": "segmentation head",
}
"""Output → the layers that make it, the shared ones first."""

_SETS = ("boxes", "scores", "labels")
_YAW = 6
_SCORE_WEIGHT = 10.0

Arrays = Mapping[str, np.ndarray]
Measured = dict[str, dict[str, float]]
Run = Callable[[dict[str, np.ndarray]], Arrays]


@dataclass(frozen=True)
class Problem:
    """An output that differs by more than it may.

    Attributes:
        output: its name.
        group: the layers that make it.
        measure: "max" or "mean".
        found: the difference; NaN where it was not measured.
        allowed: the tolerance.
    """

    output: str
    group: str
    measure: str
    found: float
    allowed: float

    def __str__(self) -> str:
        found = (
            "was not measured" if math.isnan(self.found) else f"differs by {self.found:.3g} ({self.measure})"
        )
        return f"{self.output} ({self.group}) {found}, allowed {self.allowed:.3g}"


@dataclass(frozen=True)
class Proof:
    """A folder's proof.

    Attributes:
        content: of `proof.json`.
        inputs: per step, name → array.
        outputs: per step, name → array, of torch.
    """

    content: Mapping[str, Any]
    inputs: list[dict[str, np.ndarray]]
    outputs: list[dict[str, np.ndarray]]


def run_steps(
    run: Run, steps: Iterable[Arrays], empty_history: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Run a model step by step; the `bev` of one step is the `prev_bev` of the next.

    Args:
        run: inputs → outputs.
        steps: inputs of each step, without `prev_bev`.
        empty_history: `prev_bev` of the first step; None for a model without history.

    Yields:
        The outputs of each step.
    """
    history = empty_history
    for step in steps:
        inputs = dict(step) if history is None else {**step, "prev_bev": history}
        outputs = dict(run(inputs))
        yield outputs
        if history is not None:
            history = outputs["bev"]


def compare_steps(
    reference: Iterable[Arrays], found: Iterable[Arrays], *, min_score: float = 0.0
) -> Measured:
    """Differences of outputs over all steps.

    Boxes are compared as sets, since near-equal scores swap places: each box of the reference that counts with the
    nearest of its label, in score and box; scores in their order; of labels, the share of boxes that have no partner,
    because of their label or because only one side has so many. A box counts if it scores at least `min_score` and more
    than what the cut at the best K could have taken. Of other whole numbers, which are classes, it is the share that
    differs. The largest share is a step's.

    Args:
        reference: per step the outputs of the model; those that are left out are not compared.
        found: per step the outputs of the graph.
        min_score: of the reference's boxes.

    Returns:
        Output → "max" and "mean" of the absolute differences, infinite where one is not finite, and their "count".

    Raises:
        ValueError: the numbers of steps differ, an output is missing, or shapes differ.

    Example:
        >>> compare_steps([{"bev": np.zeros(2)}], [{"bev": np.array([0.0, 0.5])}])
        {'bev': {'max': 0.5, 'mean': 0.25, 'count': 2}}
    """
    largest: dict[str, float] = {}
    sums: dict[str, tuple[float, int]] = {}
    for expected, actual in zip(reference, found, strict=True):
        for name, (high, total, count) in _step_differences(expected, actual, min_score).items():
            largest[name] = max(largest.get(name, 0.0), high)
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + total, before[1] + count)
    return {
        name: {"max": high, "mean": sums[name][0] / max(sums[name][1], 1), "count": sums[name][1]}
        for name, high in largest.items()
    }


def check(
    measured: Mapping[str, Mapping[str, float]], tolerances: Mapping[str, Mapping[str, float]]
) -> list[Problem]:
    """Outputs that differ by more than their tolerance, those of the shared layers first.

    Args:
        measured: as `compare_steps` returns it.
        tolerances: output → "max", "mean" or both.
    """
    order = list(GROUPS)
    names = sorted(tolerances, key=lambda name: order.index(name) if name in order else len(order))
    problems = []
    for name in names:
        for measure, allowed in tolerances[name].items():
            value = measured.get(name, {}).get(measure, math.nan)
            if not value <= allowed:
                problems.append(Problem(name, GROUPS.get(name, "unknown layers"), measure, value, allowed))
    return problems


def write_steps(path: str | Path, steps: Sequence[Arrays]) -> None:
    """Write arrays of steps as `<step>/<name>`, compressed.

    Args:
        path: `.npz` file.
        steps: per step, name → array of numbers.

    Raises:
        ValueError: an array holds objects, which only a pickle could.
    """
    arrays = {f"{number}/{name}": array for number, step in enumerate(steps) for name, array in step.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"{name} holds objects, not numbers.")
    np.savez_compressed(path, **arrays)


def read_steps(path: str | Path, num_steps: int) -> list[dict[str, np.ndarray]]:
    """Read what `write_steps` wrote.

    Raises:
        ModelError: the file is missing, damaged, or has a key of another form.
    """
    steps: list[dict[str, np.ndarray]] = [{} for _ in range(num_steps)]
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                number, _, name = key.partition("/")
                steps[int(number)][name] = file[key]
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise ModelError(f"the proof's arrays are not readable ({error}). Export again", path=path) from error
    return steps


def read_proof(folder: str | Path) -> Proof:
    """Read a folder's proof.

    Raises:
        ModelError: a file is missing, damaged or of another format.
    """
    folder = Path(folder)
    path = folder / PROOF_FILE
    try:
        content = read_json(path)
        number = content["format"], int(content["steps"])
        is_whole = isinstance(content["tolerances"], dict)
    except FileNotFoundError:
        raise ModelError(
            f"there is no {PROOF_FILE}, so nothing can be repeated. Export again", path=path
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{PROOF_FILE} is not complete ({error!r}). Export again", path=path) from error
    if number[0] != FORMAT or not is_whole:
        raise ModelError(
            f"{PROOF_FILE} has format {number[0]}, this version reads {FORMAT}. Export again", path=path
        )
    return Proof(
        content=content,
        inputs=read_steps(folder / INPUTS_FILE, number[1]),
        outputs=read_steps(folder / OUTPUTS_FILE, number[1]),
    )


def _step_differences(
    expected: Arrays, actual: Arrays, min_score: float
) -> dict[str, tuple[float, float, int]]:
    """Output → largest difference, their sum, their number."""
    for name, array in expected.items():
        if name not in actual:
            raise ValueError(f"the graph has no output {name!r}; it has {', '.join(actual)}.")
        if np.shape(actual[name]) != np.shape(array):
            raise ValueError(f"{name} is {np.shape(actual[name])}, expected {np.shape(array)}.")
    has_sets = all(name in expected for name in _SETS)
    differences = {}
    for name, array in expected.items():
        if not (has_sets and name in _SETS):
            differences[name] = _differences_of(array, actual[name])
    if not has_sets:
        return differences
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _SETS}
    for row in range(len(expected["scores"])):
        mine, other = ({name: steps[name][row] for name in _SETS} for steps in (expected, actual))
        for name, values in _compare_sets(mine, other, min_score).items():
            parts[name].append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return differences | {name: _summary(diff, is_share=name == "labels") for name, diff in joined.items()}


def _differences_of(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float, int]:
    if np.issubdtype(expected.dtype, np.integer):  # classes: other or the same
        return _summary((expected != actual).astype(np.float64), is_share=True)
    return _summary(np.abs(np.asarray(actual, np.float64) - expected))


def _compare_sets(expected: Arrays, actual: Arrays, min_score: float) -> dict[str, np.ndarray]:
    boxes, scores, labels = (expected[name] for name in _SETS)
    other_boxes, other_scores, other_labels = (actual[name] for name in _SETS)
    ranked, other_ranked = -np.sort(-scores.astype(np.float64)), -np.sort(-other_scores.astype(np.float64))
    is_told = (ranked >= min_score) | (ranked.max(initial=0) < min_score)
    # FCOS's threshold is on the class alone, so that on one side it may cut a box of any score.
    is_cut = ((ranked > 0) & (other_ranked == 0)) | ((ranked == 0) & (other_ranked > 0))
    score_diff = np.abs(ranked - other_ranked)[is_told & ~is_cut]
    slack = float(np.nan_to_num(score_diff, nan=np.inf).max(initial=0.0))
    is_counted = (scores >= min_score) & (scores > other_scores.min(initial=np.inf) + slack) & (scores > 0)
    num_cut = int((is_cut & ((ranked >= min_score) | (other_ranked >= min_score))).sum())
    box_diff, lost = [np.zeros(0)], [np.ones(num_cut)]
    for label in np.unique(labels[is_counted]):
        mine = is_counted & (labels == label)
        other = (other_labels == label) & (other_scores > 0)
        lost.append(np.full(int(mine.sum()), 0.0 if other.any() else 1.0))
        if other.any():
            diff = _box_differences(boxes[mine], other_boxes[other])  # (n, m)
            cost = diff + _SCORE_WEIGHT * np.abs(
                scores[mine][:, None].astype(np.float64) - other_scores[other]
            )
            pair = np.nan_to_num(cost, nan=np.inf).argmin(axis=1)
            box_diff.append(diff[np.arange(len(pair)), pair])
    return {"boxes": np.concatenate(box_diff), "scores": score_diff, "labels": np.concatenate(lost)}


def _box_differences(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m), the largest difference of any value of two boxes; angles modulo a turn."""
    diff = np.abs(boxes[:, None].astype(np.float64) - others[None])  # (n, m, 9 or 4)
    if boxes.shape[1] > _YAW:
        turn = diff[..., _YAW] % (2 * math.pi)
        diff[..., _YAW] = np.minimum(turn, 2 * math.pi - turn)
    return diff.max(axis=-1)


def _summary(diff: np.ndarray, *, is_share: bool = False) -> tuple[float, float, int]:
    """The largest, or of zeros and ones the share of ones; the sum; the number."""
    diff = np.where(np.isfinite(diff), diff, np.inf)
    high = float(diff.max(initial=0.0))
    if is_share and diff.size:
        high = float(diff.mean())
    return high, float(diff.sum()), diff.size
