"""``perception predict``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_checked, require_weights
from perception.cli._parser import add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "predict",
        run,
        summary="run a model on the samples of an index and draw what it sees",
        examples="""
        perception predict work_dirs/nano --data data/nuscenes/perception_index/v1.0-mini_mini_val.json --num 4
        perception predict work_dirs/nano --data my_sample/info.json --out pictures
        perception predict bevformer_nano --checkpoint model.safetensors --data my_sample/info.json
        """,
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, checkpoint, or config with --checkpoint")
    parser.add_argument(
        "--data", required=True, metavar="INDEX", help="index file, see `perception data prepare`"
    )
    parser.add_argument(
        "--data-root", help="folder that image paths are relative to; default found from the index"
    )
    parser.add_argument("--checkpoint", help="weights: run folder, step folder or .safetensors file")
    parser.add_argument("--out", default="predictions", help="folder for pictures and predictions.json")
    parser.add_argument("--num", type=positive_int, metavar="N", help="only N samples, evenly spread")
    parser.add_argument("--score-threshold", type=float, default=0.2, help="boxes below are not drawn")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and draw."""
    choice = choose_model(args.model, args.checkpoint)
    checkpoint = require_weights(choice, "add --checkpoint PATH.")
    cfg = load_checked(choice.config, args, loaders=())
    from perception.engine.pictures import draw_predictions

    written = draw_predictions(
        cfg,
        checkpoint,
        index=args.data,
        data_root=args.data_root,
        out=args.out,
        num=args.num,
        score_threshold=args.score_threshold,
    )
    for path in written:
        print(path)
    return exit_codes.OK
