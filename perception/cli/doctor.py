"""``perception doctor``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._output import print_json
from perception.cli._parser import add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "doctor",
        run,
        summary="look at the environment: versions, ops, GPU, cores, disk, OpenCV",
        examples="""
        perception doctor
        perception doctor --json
        """,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Look."""
    from perception.engine.environment import inspect_environment

    facts, problems = inspect_environment()
    if args.json:
        print_json({"facts": facts, "problems": problems})
    else:
        for name, value in facts.items():
            print(f"{name:24s} {value}")
        for problem in problems:
            print(f"PROBLEM: {problem}")
        print("no problem found" if not problems else f"{len(problems)} problem(s)")
    return exit_codes.RUN_FAILED if problems else exit_codes.OK
