"""What a checkpoint says beyond weights, and whether a run may continue from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perception.checkpoint import CheckpointError

# What must be the same for the next batches and updates to be those of the run that was stopped.
_MUST_MATCH = (
    "world_size",
    "batch_size",
    "num_samples",
    "seed",
    "accumulative_counts",
    "precision",
    "strategy",
)


def check_resumable(here: Mapping[str, Any], state: Mapping[str, Any], *, path: str | Path) -> None:
    """Compare a run with the checkpoint that it is to continue.

    Raises:
        CheckpointError: lists each difference.
    """
    differences = [
        f"{key} is {state.get(key)!r} in the checkpoint and {here[key]!r} here"
        for key in _MUST_MATCH
        if state.get(key) != here[key]
    ]
    if differences:
        raise CheckpointError(
            f"the run cannot be resumed exactly: {'; '.join(differences)}. Resume as it was started, or start a new "
            "run with load_from=<this checkpoint>",
            path=path,
        )


def dump_schedules(schedules: Sequence[Any] | None) -> list[dict[str, Any]]:
    """JSON-able state of learning-rate schedules."""
    return [
        {key: value for key, value in schedule.state_dict().items() if _is_plain(value)}
        for schedule in schedules or []
    ]


def load_schedules(
    schedules: Sequence[Any] | None, states: Sequence[dict[str, Any]], *, path: str | Path
) -> None:
    """Put back what `dump_schedules` returned; where a schedule begins and ends is the config's.

    Raises:
        CheckpointError: the number of schedules differs.
    """
    schedules = schedules or []
    if len(schedules) != len(states):
        raise CheckpointError(
            f"the config has {len(schedules)} learning-rate schedules, the checkpoint {len(states)}. Use the same "
            "param_scheduler",
            path=path,
        )
    for schedule, state in zip(schedules, states, strict=True):
        schedule.load_state_dict({key: value for key, value in state.items() if key not in ("begin", "end")})


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
