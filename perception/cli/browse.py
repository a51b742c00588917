"""``perception browse``."""

import argparse
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_checked
from perception.cli._parser import add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "browse",
        run,
        summary="draw samples with their ground truth: cameras and the view from above, or one image",
        examples="""
        perception browse bevformer_nano --out pictures                  (as training sees them, augmented)
        perception browse bevformer_nano --split val --out pictures --num 4
        perception browse data/nuscenes-synthetic/perception_index/v1.0-mini_mini_val.json --out pictures --index 0 7
        perception browse data/bdd100k-synthetic/perception_index/bdd100k_val.json --out pictures --num 4
        """,
    )
    parser.add_argument("source", metavar="CONFIG_OR_INDEX", help="config, short name, or index file")
    parser.add_argument("--out", required=True, help="folder for the pictures")
    parser.add_argument("--index", type=int, nargs="+", action="extend", metavar="I", help="items to draw")
    parser.add_argument(
        "--num", type=positive_int, default=8, help="number of items, evenly spread (default 8)"
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="train", help="which of a config's"
    )
    parser.add_argument("--epoch", type=int, default=0, help="epoch whose augmentation is shown")
    parser.add_argument("--data-root", metavar="DIR", help="root of the config's data, or the index's")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Draw."""
    if Path(args.source).suffix == ".json" and Path(args.source).name != "config.json":
        from perception.engine.browse import browse, dataset_of_index

        dataset: Any = dataset_of_index(args.source, data_root=args.data_root)
    else:
        loader = f"{args.split}_dataloader"
        cfg = load_checked(args.source, args, loaders=(loader,))
        from perception.engine.browse import browse

        dataset = cfg[loader]["dataset"]
    for path in browse(dataset, out=args.out, indices=args.index, num=args.num, epoch=args.epoch):
        print(path)
    return exit_codes.OK
