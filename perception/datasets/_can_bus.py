"""Messages of nuScenes' CAN bus expansion (`can_bus/scene-xxxx_pose.json`), where a root has it."""

import json
from pathlib import Path

import numpy as np

from perception.utils import DataError

_FIELDS = ("accel", "rotation_rate", "vel")
_MAX_GAP_US = 500_000


class CanBus:
    """Acceleration, rotation rate and velocity at a time, by the nearest message.

    A scene without a file (the expansion lacks some) or a time without a message within 0.5 s has none.

    Args:
        root: the nuScenes root.
    """

    def __init__(self, root: str | Path) -> None:
        self._folder = Path(root) / "can_bus"
        self._scene = ""
        self._times = np.zeros(0, dtype=np.int64)
        self._values = np.zeros((0, 9))

    def at(self, scene_name: str, timestamp: int) -> list[float] | None:
        """The nine numbers at a time.

        Args:
            scene_name: e.g. scene-0061.
            timestamp: microseconds.

        Returns:
            acceleration (m/s²), rotation rate (rad/s), velocity (m/s), each (x, y, z) in the ego frame; or None.

        Raises:
            DataError: the scene's file is not readable.
        """
        if scene_name != self._scene:
            self._load(scene_name)
        if not len(self._times):
            return None
        nearest = int(np.abs(self._times - timestamp).argmin())
        if abs(int(self._times[nearest]) - timestamp) > _MAX_GAP_US:
            return None
        return self._values[nearest].tolist()

    def _load(self, scene_name: str) -> None:
        path = self._folder / f"{scene_name}_pose.json"
        messages = []
        if path.is_file():
            try:
                messages = json.loads(path.read_bytes())
                self._times = np.array([message["utime"] for message in messages], dtype=np.int64)
                values = [[number for field in _FIELDS for number in message[field]] for message in messages]
                self._values = np.array(values, dtype=np.float64).reshape(-1, 9)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"not a readable CAN bus pose file ({error!r}); unpack the expansion again, or remove its folder "
                    "(it is optional)",
                    path=path,
                ) from error
        else:
            self._times = np.zeros(0, dtype=np.int64)
        self._scene = scene_name
