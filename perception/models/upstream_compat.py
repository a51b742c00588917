"""The upstream defects that can be switched back on, for weights that were trained with them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from perception.config import did_you_mean


@dataclass(frozen=True, kw_only=True)
class UpstreamCompat:
    """Where to do as the official code does, instead of correctly; by default nowhere.

    *Source*: fundamentalvision/BEVFormer and Bin-ze/BEVFormer_segmentation_detection. Each part of the model takes all
    switches and reads its own. The first five are the encoder's, the next two the box head's, the last the map head's.

    Args:
        rotate_center: (x, y) in cells, about which history turns; upstream (100, 100) whatever the grid. None: the
            vehicle, in metres.
        aliased_shift: the ego motion's shift moves the reference points of the current BEV too, not the history's alone
            (official code until 2023-07-27, so probably the released v1 checkpoints; Bin-ze's always).
        first_sample_cameras: at batch > 1 a camera is sampled for the cells that the first sample's camera sees.
        first_sample_history: at batch > 1 the first sample decides whether any sample has history.
        mixed_temporal_query: at batch > 1 temporal offsets are predicted from `value[:batch]`, i.e. from history and
            current BEV of the first half of the samples.
        drop_unknown_velocity: a box whose velocity is unknown has no box loss at all.
        lower_score_threshold: if no box scores above `score_threshold`, it shrinks by a tenth until one does.
        map_divisors: (along x, along y) metres by which map positions are divided to get −1..1 between the outermost
            BEV cells' centres; Bin-ze (50.86, 50.86), i.e. 51.2 less half of 0.68, for cells of 0.6827 m. Beyond these
            centres there is zero. None: by the grids.

    Example:
        >>> UpstreamCompat.read({"aliased_shift": True}).aliased_shift
        True
    """

    rotate_center: tuple[float, float] | None = None
    aliased_shift: bool = False
    first_sample_cameras: bool = False
    first_sample_history: bool = False
    mixed_temporal_query: bool = False
    drop_unknown_velocity: bool = False
    lower_score_threshold: bool = False
    map_divisors: tuple[float, float] | None = None

    @classmethod
    def read(cls, settings: "UpstreamCompat | Mapping[str, Any] | None") -> "UpstreamCompat":
        """The switches of a config; None: all off.

        Raises:
            ValueError: there is no such switch, or its value has another form.
        """
        if settings is None:
            return cls()
        if isinstance(settings, UpstreamCompat):
            return settings
        known = {field.name: field.type for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(
                    f"upstream_compat has no switch {name!r}.{did_you_mean(name, list(known))} "
                    f"Its switches: {', '.join(known)}."
                )
            is_flag = known[name] is bool
            is_pair = isinstance(value, list | tuple) and len(value) == 2
            if not (isinstance(value, bool) if is_flag else value is None or is_pair):
                wanted = "True or False" if is_flag else "two numbers, or None"
                raise ValueError(f"upstream_compat.{name} must be {wanted}, got {value!r}.")
            values[name] = tuple(value) if is_pair else value
        return cls(**values)
