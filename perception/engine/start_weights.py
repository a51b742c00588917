"""Weights that a run starts from: those of one model, or of one model per group of tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perception.balancing.task_norms import join_state_dicts, spread_state_dict
from perception.checkpoint import CheckpointError, find_checkpoint, load_model_weights, load_state
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
        path = find_checkpoint(source)
        check_vocabulary(vocabulary, load_state(path), path=path)
        return spread_state_dict(model, load_model_weights(path)), str(path)
    paths = {group: find_checkpoint(path) for group, path in source.items()}
    for path in paths.values():
        check_vocabulary({**vocabulary, "task_names": None}, load_state(path), path=path)
    described = ", ".join(f"{group}: {path}" for group, path in paths.items())
    states = {group: load_model_weights(path) for group, path in paths.items()}
    try:
        return join_state_dicts(model, states), described
    except ValueError as error:
        raise CheckpointError(f"load_from: {error}", path=described) from error
