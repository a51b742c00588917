"""The part of a run's state that each rank has of its own: its generators, and what its streams carry."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perception.checkpoint import CheckpointError
from perception.engine.collectives import gather_bytes, rank
from perception.engine.rng import get_rng_state
from perception.engine.stream_sampler import StreamSampler


def gather_rank_states(model: nn.Module, sampler: Any) -> dict[str, dict[int, Any]]:
    """`rng_states` and `stream_states`, rank → state, for `save_checkpoint`; every rank must call this.

    Args:
        model: the bare model.
        sampler: the training sampler.

    Returns:
        On the first rank all ranks' states, on others nothing. Without streams `stream_states` is empty.
    """
    streams = None
    if isinstance(sampler, StreamSampler):
        streams = {"sampler": sampler.options, **_memory_of(model).state_dict()}
    buffer = io.BytesIO()
    torch.save({"rng": get_rng_state(), "streams": streams}, buffer)
    parts = gather_bytes(buffer.getvalue(), what="states of all ranks")
    if rank() != 0:
        return {"rng_states": {}, "stream_states": {}}
    states = [torch.load(io.BytesIO(part), weights_only=True) for part in parts]
    return {
        "rng_states": {number: state["rng"] for number, state in enumerate(states)},
        "stream_states": {
            number: state["streams"] for number, state in enumerate(states) if state["streams"] is not None
        },
    }


def load_stream_state(
    model: nn.Module, sampler: Any, states: Mapping[int, Mapping[str, Any]], *, path: str | Path
) -> None:
    """Put back what this rank's streams carry.

    Args:
        model: the bare model, on its device.
        sampler: the training sampler.
        states: a checkpoint's `stream_states`.
        path: the checkpoint.

    Raises:
        CheckpointError: only one of checkpoint and run has streams, or the run's go through the frames otherwise.
    """
    advice = "Resume as it was started, or start a new run with load_from=<this checkpoint>"
    is_streaming = isinstance(sampler, StreamSampler)
    if is_streaming != bool(states):
        here, there = ("has", "none") if is_streaming else ("has no", "some")
        raise CheckpointError(
            f"the run cannot be resumed exactly: it {here} streams (sampler {type(sampler).__name__}), the checkpoint "
            f"holds {there}. {advice}",
            path=path,
        )
    if not is_streaming:
        return
    state = states[rank()]
    if state["sampler"] != sampler.options:
        raise CheckpointError(
            f"the run cannot be resumed exactly: the checkpoint's streams have {state['sampler']}, those here "
            f"{sampler.options}. {advice}",
            path=path,
        )
    _memory_of(model).load_state_dict(state, next(model.parameters()).device)


def check_stream_model(model: nn.Module, sampler: Any) -> None:
    """Refuse to train a model on streams that carries nothing.

    Raises:
        ValueError: the model has no memory, or does not use history.
    """
    if isinstance(sampler, StreamSampler):
        _memory_of(model)
        if not getattr(model, "use_history", True):
            raise ValueError(
                "the training sampler is StreamSampler, but model.use_history is False, so nothing would be carried. "
                "Use sampler=dict(type=EpochSampler) with queue_length=1, or model.use_history=True"
            )


def _memory_of(model: nn.Module) -> Any:
    if not hasattr(model, "stream_memory"):
        raise ValueError(
            f"{type(model).__name__} carries no state from step to step (it has no `stream_memory`), so it can't be "
            "trained on streams. Use sampler=dict(type=EpochSampler), or give it a StreamMemory as BEVFormer has"
        )
    return model.stream_memory
