"""Shared pieces of the verbs' parsers. Nothing heavy is imported here: ``--help`` must be quick."""

import argparse
import math
import re
from collections.abc import Callable
from decimal import Decimal

from perception.cli import exit_codes

Run = Callable[[argparse.Namespace], int]


def add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Run,
    *,
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a verb whose help ends with examples and exit codes."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{lines}\n\n{exit_codes.HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print tracebacks (also by PERCEPTION_DEBUG=1)"
    )
    parser.set_defaults(run=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set`` and its MM-style spelling."""
    parser.add_argument(
        "--set",
        "--cfg-options",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change config values; dotted keys, numbers index lists, values are JSON or Python literals",
    )


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root`` for verbs that read a config's own data."""
    parser.add_argument("--data-root", metavar="DIR", help="root of all the config's data sets and metrics")


def add_variant(parser: argparse.ArgumentParser) -> None:
    """Add ``--variant`` for verbs that take an export folder, None where it is not given."""
    parser.add_argument(
        "--variant", choices=("fp32", "fp16", "int8"), help="which graph of an export folder (default fp32)"
    )


def add_bad_sample(parser: argparse.ArgumentParser, skipping: str) -> None:
    """Add ``--on-bad-sample``, None where it is not given."""
    parser.add_argument(
        "--on-bad-sample",
        choices=("strict", "skip"),
        help=f"strict (default): stop at a defective sample and name it; skip: {skipping}",
    )


def positive_int(text: str) -> int:
    """A whole number above zero.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above zero.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if number_from_zero(text) == 0.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return float(text)


def number_from_zero(text: str) -> float:
    """A finite number, zero or more.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, found {text!r}")
    return value


def amounts(text: str) -> list[int]:
    """Whole numbers above zero with commas between, with k, M or B for 10^3, 10^6 or 10^9.

    Raises:
        argparse.ArgumentTypeError: they are not.

    Example:
        >>> amounts("8,43.9M,1B")
        [8, 43900000, 1000000000]
    """
    values = []
    for word in text.split(","):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", word.strip(), re.ASCII)
        exact = Decimal(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}[found[2]] if found else 0
        if exact < 1 or exact != int(exact):
            raise argparse.ArgumentTypeError(
                f"expected whole numbers above 0 with commas between, e.g. 8,43.9M,1B, found {text!r}"
            )
        values.append(int(exact))
    return values


def image_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, e.g. 512x288.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    found = re.fullmatch(r"(\d+)[x×](\d+)", text, re.ASCII)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= min(size) <= max(size) <= 65500:
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT in pixels, e.g. 512x288 (ROOT goes before it), found {text!r}"
        )
    return size


def int_between(low: int, high: int) -> Callable[[str], int]:
    """An argument type: a whole number in low...high, both allowed, neither negative."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return int(text)

    return parse
