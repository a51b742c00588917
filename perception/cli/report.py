"""``perception report``."""

import argparse
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._parser import add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "report",
        run,
        summary="write a run's one-page HTML report",
        examples="""
        perception report work_dirs/nano
        perception report work_dirs/demo --seconds setup=120 synthesize=95.5
        """,
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    parser.add_argument(
        "--seconds",
        nargs="+",
        default=[],
        metavar="STEP=SECONDS",
        help="times of steps outside the run, merged into summary.json",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    from perception.config import ConfigError

    folder = Path(args.run_folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.json.")
    if args.seconds:
        merge_seconds(folder, args.seconds)
    from perception.visualization import write_report

    print(write_report(folder))
    return exit_codes.OK


def merge_seconds(folder: Path, entries: list[str]) -> None:
    """Add ``step=seconds`` entries to the summary's ``seconds``.

    Raises:
        ConfigError: an entry is malformed.
    """
    from perception.config import ConfigError
    from perception.engine import update_summary

    seconds = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            seconds[name] = round(float(value), 1)
        except ValueError:
            raise ConfigError(f"--seconds {entry}: expected STEP=SECONDS, for example setup=120.") from None
    update_summary(folder, {"seconds": seconds})
