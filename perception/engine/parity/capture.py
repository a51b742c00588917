"""What modules get and give in the latest forward."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Capture:
    """Hooks that keep arguments and results by name."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def result(self, name: str, module: nn.Module) -> None:
        """Keep what the module returns."""
        module.register_forward_hook(lambda _module, _args, out: self.seen.__setitem__(name, out))

    def arguments(self, name: str, module: nn.Module) -> None:
        """Keep the module's positional arguments."""
        module.register_forward_pre_hook(_keep(self.seen, name))

    def __getitem__(self, name: str) -> Any:
        return self.seen[name]


def _keep(seen: dict[str, Any], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(_module: nn.Module, args: Any) -> None:
        seen[name] = args

    return hook
