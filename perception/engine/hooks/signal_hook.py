"""SIGTERM and SIGUSR1: finish the step, save, leave."""

import signal
import threading
from types import FrameType
from typing import Any

from mmengine.hooks import Hook

from perception.registry import HOOKS
from perception.utils import get_logger

logger = get_logger("engine")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@HOOKS.register_module()
class SignalHook(Hook):
    """The handler sets a flag and nothing else; ranks agree on it at the next step boundary.

    No collective, lock or file is touched inside a handler: the signal may arrive in the middle of another one.
    """

    # Before the checkpoint hook, which looks at what was agreed here.
    priority = "LOW"

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._received = 0

    def before_train(self, runner: Any) -> None:
        """Install the handlers (in the main thread only, as Python demands)."""
        self._received = 0
        runner.local_stop_signal = lambda: self._received
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def at_step_boundary(self, runner: Any) -> None:
        """Agree with the other ranks."""
        was_stopping = runner.should_stop
        if runner.poll_stop_request() and not was_stopping and runner.stop_signal:
            name = signal.Signals(runner.stop_signal).name
            logger.warning("%s received: saving a checkpoint at step %d, then leaving", name, runner.iter)
            runner.call_hook("on_stop", signal_name=name)

    def close(self) -> None:
        """Put back the handlers that were there before training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = number
