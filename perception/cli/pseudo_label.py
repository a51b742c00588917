"""``perception pseudo-label``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_checked, require_weights
from perception.cli._output import say
from perception.cli._parser import add_data_root, add_overrides, add_verb, number_from_zero


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "pseudo-label",
        run,
        summary="let trained models label the training images, in BDD100K's format",
        examples="""
        perception pseudo-label work_dirs/fcos_nano_det work_dirs/fcos_nano_seg --out data/pseudo --images fcos_nano
        perception pseudo-label work_dirs/fcos_nano --out data/pseudo         (one model for both tasks)
        perception pseudo-label fcos_nano_det --checkpoint model.safetensors --out data/pseudo --score 0.5
        """,
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="run folder or checkpoint of a teacher, one per task; or one config with --checkpoint",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the labels; a stopped run goes on in it"
    )
    parser.add_argument("--checkpoint", help="weights of a MODEL that is a config")
    parser.add_argument(
        "--images",
        metavar="CONFIG",
        help="config whose training images are labelled (default the first MODEL's own)",
    )
    parser.add_argument(
        "--score",
        type=number_from_zero,
        default=0.3,
        help="boxes with a lower score are left out (default 0.3)",
    )
    parser.add_argument(
        "--nms",
        type=number_from_zero,
        default=0.2,
        help="IoU above which the worse of two boxes of a class is left out (default 0.2)",
    )
    parser.add_argument(
        "--confidence",
        type=number_from_zero,
        default=0.8,
        help="pixels whose class is less probable are ignored (default 0.8)",
    )
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Label."""
    from perception.config import ConfigError

    if args.checkpoint is not None and len(args.models) > 1:
        raise ConfigError("--checkpoint belongs to one MODEL; give run folders or checkpoints of several")
    choices = [choose_model(name, args.checkpoint) for name in args.models]
    weights = [require_weights(choice, "add --checkpoint PATH.") for choice in choices]
    configs = [load_checked(choice.config, args, loaders=()) for choice in choices]
    images = load_checked(args.images or choices[0].config, args, loaders=("train_dataloader",))
    from perception.engine.pseudo_labels import LabelRules, Teacher, write_pseudo_labels

    out = write_pseudo_labels(
        [Teacher(cfg=cfg, weights=path) for cfg, path in zip(configs, weights, strict=True)],
        out=args.out,
        images=images,
        rules=LabelRules(score=args.score, nms=args.nms, confidence=args.confidence),
    )
    say(f"written to {out}")
    return exit_codes.OK
