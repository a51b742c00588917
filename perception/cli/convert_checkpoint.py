"""``perception convert-checkpoint``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_changed
from perception.cli._parser import add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "convert-checkpoint",
        run,
        summary="turn an official BEVFormer checkpoint into ours, or ours into an official one",
        examples="""
        perception convert-checkpoint bevformer_r101_dcn_24ep.pth --config bevformer_official_base --out work_dirs/base
        perception convert-checkpoint tiny.pth --config bevformer_official_tiny --out work_dirs/tiny
        perception convert-checkpoint work_dirs/mine --to-upstream --out work_dirs/mine_upstream
        """,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="official .pth file; with --to-upstream a checkpoint of ours"
    )
    parser.add_argument(
        "--config", help="config of the same model; with --to-upstream a run folder brings its own"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the converted file")
    parser.add_argument("--to-upstream", action="store_true", help="the other way: from ours to official")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Convert."""
    from perception.config import ConfigError

    config = args.config
    if config is None and args.to_upstream:
        config = choose_model(args.source, None).config
    if config is None:
        raise ConfigError("convert-checkpoint needs --config: the model that the weights are for")
    cfg = load_changed(config, args)
    from perception.engine import upstream_conversion as conversion

    conventions = conversion.OFFICIAL_CONVENTION, conversion.CONVENTION
    if args.to_upstream:
        done, (before, after) = conversion.convert_to_upstream(cfg, args.source, args.out), conventions[::-1]
    else:
        done, (before, after) = conversion.convert_from_upstream(cfg, args.source, args.out), conventions
    print(f"read     {done.source} (sha256 {done.sha256})")
    print(f"written  {done.out}: {done.num_tensors} tensors, {done.num_values:,} numbers")
    print(f"boxes    {before} -> {after}: rows of {len(done.changed)} tensors moved, the rest is as it was")
    for what, names in (("left out", done.left_out), ("set to 0", done.filled)):
        if names:
            print(f"{what} {len(names)} tensors: {', '.join(names)}")
    for note in done.notes:
        print(note)
    if not args.to_upstream:
        print(f"next: perception test {config} --checkpoint {done.out}")
    return exit_codes.OK
