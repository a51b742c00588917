"""What a balancing step did, as JSON-able numbers."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

from perception.balancing.gram_weighting import cosines


def describe_step(task_names: Sequence[str], scales: Tensor, last: Mapping[str, Tensor]) -> dict[str, Any]:
    """Describe the last step; only keys whose numbers were at hand.

    Args:
        task_names: the tasks, T.
        scales: (T,) constant factors of the losses.
        last: of the step: `weights` (T,), `present` (T,) bool, and after a combination `multiplied` (T,), the weights
            in the gradients, `coefficients` (T,) and, if there was one, `gram` (T, T).

    Returns:
        `weights` (loss weights or exponents); after a combination `coefficients` (of the unweighted gradients in the
        update); with a Gram matrix `grad_norms` of the unweighted gradients, `cosines` by "task/task" and
        `conflict_share`, the share of pairs whose cosine is below 0 (None without a pair). Absent tasks are left out.
    """
    if "present" not in last:
        return {}
    tasks = [number for number, is_present in enumerate(last["present"].tolist()) if is_present]
    report: dict[str, Any] = {"weights": {task_names[t]: float(last["weights"][t]) for t in tasks}}
    if "coefficients" not in last:
        return report
    factors = last["multiplied"] * scales
    totals = last["coefficients"] * factors
    report["coefficients"] = {task_names[t]: float(totals[t]) for t in tasks}
    if "gram" in last:
        report |= describe_gram(task_names, last["gram"], last["present"], factors)
    return report


def describe_gram(
    task_names: Sequence[str], gram: Tensor, present: Tensor, factors: Tensor
) -> dict[str, Any]:
    """Norms, cosines and conflicts of the present tasks' gradients.

    Args:
        task_names: the tasks, T.
        gram: (T, T) of gradients that were multiplied by `factors`.
        present: (T,) bool.
        factors: (T,), taken out of the norms again.

    Returns:
        `grad_norms`, `cosines` and `conflict_share` as `describe_step` says.
    """
    tasks = [number for number, is_present in enumerate(present.tolist()) if is_present]
    norms = gram.diagonal().clamp(min=0).sqrt()
    matrix = cosines(gram)
    pairs = {f"{task_names[a]}/{task_names[b]}": float(matrix[a, b]) for a, b in combinations(tasks, 2)}
    return {
        "grad_norms": {
            task_names[t]: float(norms[t] / factors[t]) if float(factors[t]) > 0 else 0.0 for t in tasks
        },
        "cosines": pairs,
        "conflict_share": sum(value < 0 for value in pairs.values()) / len(pairs) if pairs else None,
    }
