"""How much losses are multiplied by before a backward in float16, so that small gradients do not become zero."""

import math
from collections.abc import Mapping
from typing import Any

_LARGEST = 3.4028234663852886e38  # of float32: the scale multiplies float32 losses


class LossScaler:
    """A loss scale that is halved by an overflow and doubled after a long stretch without one.

    *Source*: Micikevicius et al. 2018, §3.2; rules, names and defaults are those of `torch.amp.GradScaler`, which
    cannot be used itself: it unscales an optimiser's gradients, and here task gradients are unscaled before they are
    compared. *Deviation*: the scale has a floor; what overflows even there is a bad step.

    With factors that are powers of two scaling is exact: nothing but what would underflow or overflow changes.

    Args:
        init_scale: the first scale.
        growth_factor: the scale is multiplied by it after `growth_interval` updates in a row without an overflow.
        backoff_factor: the scale is multiplied by it after an overflow.
        growth_interval: see `growth_factor`.
        min_scale: the floor.

    Attributes:
        scale: the present scale, the same on all ranks.
        num_overflows: overflows so far.

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> scaler = LossScaler(init_scale=4.0, growth_interval=2)
        >>> scales = []
        >>> for has_overflowed in (True, False, False, False):
        ...     scaler.update(has_overflowed=has_overflowed)
        ...     scales.append(scaler.scale)
        >>> scales
        [2.0, 2.0, 4.0, 4.0]
    """

    def __init__(
        self,
        *,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        min_scale: float = 1.0,
    ) -> None:
        is_valid = 0 < min_scale <= init_scale <= _LARGEST and growth_interval >= 1
        if not is_valid or not 0 < backoff_factor < 1 < growth_factor < math.inf:
            raise ValueError(
                f"loss_scale has init_scale={init_scale}, growth_factor={growth_factor}, "
                f"backoff_factor={backoff_factor}, growth_interval={growth_interval}, min_scale={min_scale}; allowed: "
                "0 < min_scale <= init_scale, growth_factor > 1, 0 < backoff_factor < 1, growth_interval >= 1"
            )
        self.scale = float(init_scale)
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.min_scale = float(min_scale)
        self.num_overflows = 0
        self._num_good = 0  # updates since the last change

    @property
    def is_at_floor(self) -> bool:
        """Whether an overflow could not lower the scale."""
        return self.scale <= self.min_scale

    def update(self, *, has_overflowed: bool) -> None:
        """Set the next update's scale; the same on all ranks, so the flag must be."""
        if has_overflowed:
            self.num_overflows += 1
            self.scale = max(self.scale * self.backoff_factor, self.min_scale)
            self._num_good = 0
            return
        self._num_good += 1
        if self._num_good == self.growth_interval:
            grown = self.scale * self.growth_factor
            self.scale = grown if grown <= _LARGEST else self.scale
            self._num_good = 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able values that a resume needs."""
        return {"scale": self.scale, "num_good": self._num_good, "num_overflows": self.num_overflows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.scale = float(state["scale"])
        self._num_good = int(state["num_good"])
        self.num_overflows = int(state["num_overflows"])
