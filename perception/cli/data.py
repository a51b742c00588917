"""``perception data synthesize | prepare | verify``."""

import argparse
from pathlib import Path
from typing import Any

from perception.cli import _synthesize, exit_codes
from perception.cli._parser import add_bad_sample, add_verb, image_size, int_between, positive_int

FORMATS = ("nuscenes", "bdd100k")


def add_parser(verbs: Any) -> None:
    """Add the verb and its three kinds."""
    parser = verbs.add_parser(
        "data", help="make, index or check data", description="Make, index or check data."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    _synthesize.add_parser(kinds)
    prepare = add_verb(
        kinds,
        "prepare",
        run_prepare,
        summary="check a nuScenes or BDD100K root and build its index",
        examples="""
        perception data prepare data/nuscenes-synthetic
        perception data prepare data/nuscenes --version v1.0-trainval
        perception data prepare /read/only/nuscenes --version v1.0-mini --out data/index
        perception data prepare data/nuscenes --version v1.0-trainval --splits my_train my_val
        perception data prepare data/nuscenes --version v1.0-mini --cache 512x288 800x450
        perception data prepare data/bdd100k
        perception data prepare data/bdd100k --splits val
        """,
    )
    verify = add_verb(
        kinds,
        "verify",
        run_verify,
        summary="list all defects of a nuScenes or BDD100K root: tables, boxes, masks, images, maps",
        examples="""
        perception data verify data/nuscenes-synthetic
        perception data verify data/nuscenes --version v1.0-trainval --no-decode
        perception data verify data/bdd100k
        """,
    )
    for kind in (prepare, verify):
        kind.add_argument(
            "--format", choices=FORMATS, help="on-disk format; default as the root's folders look"
        )
        kind.add_argument(
            "root", metavar="ROOT", help="folder that holds v1.0-*/ and samples/, or images/ and labels/"
        )
        kind.add_argument("--version", help="nuScenes': e.g. v1.0-mini; default the only one there is")
    prepare.add_argument("--out", help="folder for the index; default ROOT/perception_index")
    prepare.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help="only these splits, official or of v1.0-*/splits.json; default all, whose images must all be there",
    )
    add_bad_sample(
        prepare, "leave them, at most one in a thousand, to `train --on-bad-sample skip` (BDD100K only)"
    )
    _add_cache(prepare)
    verify.add_argument("--no-decode", action="store_true", help="do not decode every image")


def _add_cache(prepare: argparse.ArgumentParser) -> None:
    group = prepare.add_argument_group(
        "image cache", "resized copies of the index's images, which decode faster than the originals"
    )
    group.add_argument(
        "--cache",
        nargs="+",
        type=image_size,
        metavar="WIDTHxHEIGHT",
        help="sizes, as the config's ResizeMultiView makes them; a second run makes what is missing or changed",
    )
    group.add_argument("--cache-dir", metavar="DIR", help="folder for the copies; default OUT/image_cache")
    group.add_argument(
        "--cache-format",
        choices=("jpeg", "bmp"),
        help="jpeg (default), or bmp: nothing is lost, seven times the space",
    )
    group.add_argument(
        "--cache-quality", type=int_between(1, 100), metavar="N", help="of JPEGs, 1 to 100 (default 95)"
    )
    group.add_argument(
        "--cache-interpolation",
        choices=("bilinear", "area"),
        help="as in the config's ResizeMultiView (default bilinear)",
    )
    group.add_argument("--workers", type=positive_int, help="processes that copy; default one per core")


def run_prepare(args: argparse.Namespace) -> int:
    """Build an index, and image caches."""
    from perception.config import ConfigError

    if _format_of(args) == "bdd100k":
        return _prepare_bdd100k(args)
    if args.on_bad_sample is not None:
        raise ConfigError("--on-bad-sample: only for BDD100K; nuScenes' defects must be repaired first.")
    needs_cache = ("cache_dir", "cache_format", "cache_quality", "cache_interpolation", "workers")
    given = [f"--{name.replace('_', '-')}" for name in needs_cache if getattr(args, name) is not None]
    if given and not args.cache:
        raise ConfigError(f"{', '.join(given)}: only together with --cache WIDTHxHEIGHT.")
    if args.cache_format == "bmp" and args.cache_quality is not None:
        raise ConfigError("--cache-quality: only JPEGs have one, and the format is bmp.")
    from perception.datasets import prepare

    indexes = prepare(args.root, version=args.version, out=args.out, splits=args.splits)
    for path in indexes:
        print(path)
    if args.cache:
        _prepare_caches(args, indexes)
    return exit_codes.OK


def _format_of(args: argparse.Namespace) -> str:
    """The format named, or the one that the root's folders look like."""
    if args.format is not None:
        return args.format
    has_sets = any((Path(args.root) / "images" / name).is_dir() for name in ("100k", "10k"))
    return "bdd100k" if has_sets else "nuscenes"


def _refuse(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    from perception.config import ConfigError

    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for nuScenes, and {args.root} is a BDD100K root.")


def _prepare_bdd100k(args: argparse.Namespace) -> int:
    cache = ("cache", "cache_dir", "cache_format", "cache_quality", "cache_interpolation", "workers")
    _refuse(args, ("version", *cache))
    from perception.datasets import prepare_bdd100k

    options = {} if args.on_bad_sample is None else {"on_error": args.on_bad_sample}
    for path in prepare_bdd100k(args.root, out=args.out, splits=args.splits, **options):
        print(path)
    return exit_codes.OK


def _prepare_caches(args: argparse.Namespace, indexes: list[Path]) -> None:
    from perception.datasets import prepare_image_cache
    from perception.utils import DataError

    errors = []
    for size in dict.fromkeys(args.cache):
        try:
            report = prepare_image_cache(
                args.root,
                indexes,
                size=size,
                cache_dir=args.cache_dir or indexes[0].parent / "image_cache",
                interpolation=args.cache_interpolation or "bilinear",
                image_format=args.cache_format or "jpeg",
                quality=args.cache_quality or 95,
                num_workers=args.workers,
            )
        except DataError as error:  # the other sizes can be made all the same
            errors.append(str(error))
            continue
        made = f"{report.num_made} made now" if report.num_made else "all were there"
        print(f"{report.folder}: {report.num_images} images, {report.num_bytes / 1e6:.1f} MB, {made}")
    if errors:
        raise DataError("\n".join(errors))


def run_verify(args: argparse.Namespace) -> int:
    """List the defects."""
    from perception.datasets import verify, verify_bdd100k

    if _format_of(args) == "bdd100k":
        _refuse(args, ("version",))
        problems = verify_bdd100k(args.root, decode_images=not args.no_decode)
    else:
        problems = verify(args.root, version=args.version, decode_images=not args.no_decode)
    for problem in problems:
        print(problem)
    print(f"{args.root}: {len(problems)} defects" if problems else f"{args.root}: no defect found")
    return exit_codes.DATA if problems else exit_codes.OK
