"""``perception check``."""

import argparse
import time
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_checked
from perception.cli._parser import add_data_root, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "check",
        run,
        summary="tell everything about a config that can be known without a GPU",
        examples="""
        perception check bevformer_nano
        perception check configs/bevformer/mine.py --set optim_wrapper.optimizer.lr=1e-3
        perception check bevformer_tiny --no-data             (the config alone)
        """,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file, short name or run folder")
    parser.add_argument("--no-data", action="store_true", help="do not look whether the data is there")
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Check."""
    start = time.monotonic()
    loaders = () if args.no_data else ("train_dataloader", "val_dataloader", "test_dataloader")
    cfg = load_checked(args.config, args, loaders=loaders)
    from perception.engine import check_config_classes

    check_config_classes(cfg)
    print(f"{args.config}: no problem found ({time.monotonic() - start:.1f} s)")
    return exit_codes.OK
