"""The error of everything that is wrong in a config, a command line or a config name."""

from collections.abc import Iterable


class ConfigError(ValueError):
    """A config, an override or a config name is wrong.

    Args:
        message: what is wrong, what was found, what is allowed and the remedy.
        problems: the single problems, if several were found at once; each becomes a line of the message.

    Example:
        >>> print(ConfigError("2 problems", problems=["a: unknown", "b: unknown"]))
        2 problems
          - a: unknown
          - b: unknown
    """

    def __init__(self, message: str, *, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))
