"""``perception config ls | show | diff``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_changed
from perception.cli._output import print_json
from perception.cli._parser import add_data_root, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb and its three kinds."""
    parser = verbs.add_parser("config", help="list, show or compare configs", description="Look at configs.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    add_verb(kinds, "ls", run_ls, summary="list the configs", examples="perception config ls")
    show = add_verb(
        kinds,
        "show",
        run_show,
        summary="print a whole config as JSON",
        examples="""
        perception config show bevformer_nano
        perception config show bevformer_nano --key optim_wrapper
        perception config show work_dirs/nano
        """,
    )
    show.add_argument("config", metavar="CONFIG", help="config file, short name or run folder")
    show.add_argument("--key", help="dotted key of the part to print")
    add_data_root(show)
    add_overrides(show)
    diff = add_verb(
        kinds,
        "diff",
        run_diff,
        summary="print the values in which two configs differ",
        examples="""
        perception config diff bevformer_nano bevformer_nano_det
        perception config diff bevformer_nano work_dirs/nano
        """,
    )
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")


def run_ls(args: argparse.Namespace) -> int:
    """List."""
    from perception.config import list_configs

    names = list_configs()
    width = max((len(name.short) for name in names), default=0)
    for name in names:
        print(f"{name.short:{width}s}  {name.path.name}")
    return exit_codes.OK


def run_show(args: argparse.Namespace) -> int:
    """Show."""
    from perception.config import ConfigError, did_you_mean, dump_json

    part: Any = dump_json(load_changed(args.config, args))
    for key in args.key.split(".") if args.key else ():
        if isinstance(part, list) and key.isdecimal() and int(key) < len(part):
            part = part[int(key)]
        elif isinstance(part, dict) and key in part:
            part = part[key]
        else:
            options = list(part) if isinstance(part, dict) else []
            raise ConfigError(f"--key {args.key}: there is no {key!r}.{did_you_mean(key, options)}")
    print_json(part)
    return exit_codes.OK


def run_diff(args: argparse.Namespace) -> int:
    """Compare."""
    from perception.config import dump_json, flatten, load_config

    first = dict(flatten(dump_json(load_config(args.first))))
    second = dict(flatten(dump_json(load_config(args.second))))
    for key in sorted({*first, *second}):
        before, after = first.get(key, "(absent)"), second.get(key, "(absent)")
        if before != after:
            print(f"{key}: {before} -> {after}")
    return exit_codes.OK
