"""``perception data synthesize | prepare | verify``."""

import argparse
import time
from typing import Any

from perception.cli import exit_codes
from perception.cli._parser import add_verb, int_between, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb and its three kinds."""
    parser = verbs.add_parser(
        "data", help="make, index or check data", description="Make, index or check data."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    synthesize = add_verb(
        kinds,
        "synthesize",
        run_synthesize,
        summary="write a synthetic world in nuScenes' own format",
        examples="""
        perception data synthesize --out data/nuscenes-synthetic --scenes 10 --seed 0
        """,
    )
    _add_format(synthesize)
    synthesize.add_argument("--out", required=True, help="folder to write; must not hold another world")
    synthesize.add_argument(
        "--scenes", type=int_between(1, 10), default=10, help="number of scenes, 1 to 10 (default 10)"
    )
    synthesize.add_argument(
        "--samples-per-scene", type=int_between(2, 40), default=40, help="key frames, 2 to 40 (default 40)"
    )
    synthesize.add_argument("--overwrite", action="store_true", help="replace another synthetic world in OUT")
    synthesize.add_argument(
        "--seed", type=int_between(0, 2**31 - 1), default=0, help="same seed, same world (default 0)"
    )
    synthesize.add_argument("--workers", type=positive_int, help="processes; default one per core")

    prepare = add_verb(
        kinds,
        "prepare",
        run_prepare,
        summary="build the index of a nuScenes-format root",
        examples="""
        perception data prepare data/nuscenes-synthetic
        perception data prepare data/nuscenes --version v1.0-trainval
        perception data prepare /read/only/nuscenes --version v1.0-mini --out data/index
        perception data prepare data/nuscenes --version v1.0-trainval --splits my_train my_val
        """,
    )
    verify = add_verb(
        kinds,
        "verify",
        run_verify,
        summary="check a nuScenes-format root: tables, tokens, poses, boxes, images, maps",
        examples="""
        perception data verify data/nuscenes-synthetic
        perception data verify data/nuscenes --version v1.0-trainval --no-decode
        """,
    )
    for kind in (prepare, verify):
        _add_format(kind)
        kind.add_argument("root", metavar="ROOT", help="folder that holds v1.0-*/ and samples/")
        kind.add_argument("--version", help="e.g. v1.0-mini; default the only one there is")
    prepare.add_argument("--out", help="folder for the index; default ROOT/perception_index")
    prepare.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help="only these splits, official or of v1.0-*/splits.json; default all, whose images must all be there",
    )
    verify.add_argument("--no-decode", action="store_true", help="do not decode every image")


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("nuscenes",), default="nuscenes", help="on-disk format")


def run_synthesize(args: argparse.Namespace) -> int:
    """Write a world."""
    from perception.synthetic import synthesize

    start = time.monotonic()
    synthesize(
        args.out,
        num_scenes=args.scenes,
        seed=args.seed,
        num_workers=args.workers,
        samples_per_scene=args.samples_per_scene,
        overwrite=args.overwrite,
    )
    print(f"{args.out}: {args.scenes} scenes in {time.monotonic() - start:.0f} s")
    print(f"next: perception data prepare {args.out}")
    return exit_codes.OK


def run_prepare(args: argparse.Namespace) -> int:
    """Build an index."""
    from perception.datasets import prepare

    for path in prepare(args.root, version=args.version, out=args.out, splits=args.splits):
        print(path)
    return exit_codes.OK


def run_verify(args: argparse.Namespace) -> int:
    """List the defects."""
    from perception.datasets import verify

    problems = verify(args.root, version=args.version, decode_images=not args.no_decode)
    for problem in problems:
        print(problem)
    print(f"{args.root}: {len(problems)} defects" if problems else f"{args.root}: no defect found")
    return exit_codes.DATA if problems else exit_codes.OK
