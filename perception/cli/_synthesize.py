"""``perception data synthesize``."""

import argparse
import time
from typing import Any

from perception.cli import exit_codes
from perception.cli._parser import add_verb, image_size, int_between, positive_int

_DEFAULTS: dict[str, dict[str, Any]] = {
    "nuscenes": {"scenes": 10, "samples_per_scene": 40},
    "bdd100k": {"det_images": [200, 40], "seg_images": [200, 40], "size": (1280, 720)},
}
"""Options of each format, which the other has not."""

_amount = int_between(0, 100_000)


def add_parser(kinds: Any) -> None:
    """Add the kind."""
    parser = add_verb(
        kinds,
        "synthesize",
        run,
        summary="write a synthetic world in nuScenes' or BDD100K's own format",
        examples="""
        perception data synthesize --out data/nuscenes-synthetic --scenes 10 --seed 0
        perception data synthesize --format bdd100k --out data/bdd100k-synthetic
        perception data synthesize --format bdd100k --out data/bdd100k-small --size 320x180 --det-images 400 80
        """,
    )
    parser.add_argument("--format", choices=tuple(_DEFAULTS), default="nuscenes", help="on-disk format")
    parser.add_argument("--out", required=True, help="folder to write; must not hold another world")
    parser.add_argument("--overwrite", action="store_true", help="replace another synthetic world in OUT")
    parser.add_argument(
        "--seed", type=int_between(0, 2**31 - 1), default=0, help="same seed, same world (default 0)"
    )
    parser.add_argument("--workers", type=positive_int, help="processes; default one per core")
    nuscenes = parser.add_argument_group("nuScenes")
    nuscenes.add_argument("--scenes", type=int_between(1, 10), help="number of scenes, 1 to 10 (default 10)")
    nuscenes.add_argument(
        "--samples-per-scene", type=int_between(2, 40), help="key frames, 2 to 40 (default 40)"
    )
    bdd100k = parser.add_argument_group("BDD100K")
    for name, labels in (("--det-images", "boxes (images/100k)"), ("--seg-images", "masks (images/10k)")):
        bdd100k.add_argument(
            name,
            type=_amount,
            nargs=2,
            metavar=("TRAIN", "VAL"),
            help=f"numbers of images with {labels} (default 200 40)",
        )
    bdd100k.add_argument(
        "--size", type=image_size, metavar="WIDTHxHEIGHT", help="of the images (default 1280x720)"
    )


def run(args: argparse.Namespace) -> int:
    """Write a world."""
    from perception.config import ConfigError

    for name, options in _DEFAULTS.items():
        given = [f"--{key.replace('_', '-')}" for key in options if getattr(args, key) is not None]
        if name != args.format and given:
            raise ConfigError(f"{', '.join(given)}: only with --format {name}; this is {args.format}.")
    chosen = {
        key: default if getattr(args, key) is None else getattr(args, key)
        for key, default in _DEFAULTS[args.format].items()
    }
    common = {"seed": args.seed, "num_workers": args.workers, "overwrite": args.overwrite}
    start = time.monotonic()
    if args.format == "nuscenes":
        from perception.synthetic import synthesize

        synthesize(
            args.out, num_scenes=chosen["scenes"], samples_per_scene=chosen["samples_per_scene"], **common
        )
        what = f"{chosen['scenes']} scenes"
    else:
        from perception.synthetic import synthesize_bdd100k

        det, seg = tuple(chosen["det_images"]), tuple(chosen["seg_images"])
        try:
            synthesize_bdd100k(args.out, num_det=det, num_seg=seg, size=chosen["size"], **common)
        except (TypeError, ValueError) as error:
            from perception.utils import DataError

            if isinstance(error, DataError):
                raise
            raise ConfigError(str(error)) from error
        what = f"{sum(det) + sum(seg)} images"
    print(f"{args.out}: {what} in {time.monotonic() - start:.0f} s")
    print(f"next: perception data prepare {args.out}")
    return exit_codes.OK
