"""Weights that a run starts from: those of one model, or of one model per group of tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perception.balancing.task_norms import join_state_dicts, spread_state_dict
from perception.checkpoint import CheckpointError, load_weights
from perception.engine.vocabulary import check_vocabulary


def read_start_weights(
    source: str | Path | Mapping[str, str], model: nn.Module, vocabulary: Mapping[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """Read the weights that `load_from` names.

    Args:
        source: a checkpoint, a run folder or a `.safetensors` file, whose weights go into every group's copy of a
            layer; or group → such a one for each group, say of single-task runs.
        model: the bare model.
        vocabulary: its classes and tasks. Models of single groups have fewer tasks, which are not compared.

    Returns:
        The weights, and where they come from.

    Raises:
        CheckpointError: a checkpoint is damaged or of other classes or tasks, or the groups' do not go together.
    """
    if not isinstance(source, Mapping):
        weights = load_weights(source)
        check_vocabulary(vocabulary, weights.state, path=weights.path)
        return spread_state_dict(model, weights.model_state), str(weights.path)
    found = {group: load_weights(path) for group, path in source.items()}
    for weights in found.values():
        check_vocabulary({**vocabulary, "task_names": None}, weights.state, path=weights.path)
    described = ", ".join(f"{group}: {weights.path}" for group, weights in found.items())
    states = {group: weights.model_state for group, weights in found.items()}
    try:
        return join_state_dicts(model, states), described
    except ValueError as error:
        raise CheckpointError(f"load_from: {error}", path=described) from error
