"""``perception test``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, default_work_dir, load_checked, require_weights
from perception.cli._output import print_metrics, say
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "test",
        run,
        summary="score a model, or a baseline, with the official metrics",
        examples="""
        perception test work_dirs/nano                        (latest valid checkpoint)
        perception test work_dirs/nano/checkpoints/step_00000960
        perception test bevformer_nano --checkpoint model.safetensors
        perception test bevformer_nano --untrained
        perception test bevformer_nano --baseline constant
        perception test work_dirs/nano --subset 20            (quick look, not comparable)
        perception test work_dirs/nano --format-only submission   (writes the predictions, scores nothing)
        """,
    )
    parser.add_argument(
        "model", metavar="MODEL_OR_CONFIG", help="run folder, checkpoint, config file or short name"
    )
    parser.add_argument("--checkpoint", help="weights: run folder, step folder or .safetensors file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--untrained", action="store_true", help="score the freshly initialised model")
    what.add_argument(
        "--baseline", choices=("constant", "ground-truth"), help="score a predictor that uses no images"
    )
    parser.add_argument(
        "--subset", type=positive_int, metavar="N", help="only the first N samples; scores are not comparable"
    )
    parser.add_argument(
        "--format-only",
        metavar="DIR",
        help="write the predictions into DIR in the data set's submission format and score nothing, for a split "
        "without labels",
    )
    parser.add_argument(
        "--work-dir", help="where results go; default the run folder, or work_dirs/<short name>"
    )
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Score."""
    choice = choose_model(args.model, args.checkpoint)
    needs_weights = not args.untrained and args.baseline is None
    model_path = None
    if needs_weights:
        model_path = require_weights(choice, "add --checkpoint PATH, --untrained or --baseline constant.")
    if args.format_only is not None and args.baseline is not None:
        from perception.config import ConfigError

        raise ConfigError("--format-only writes a model's predictions; leave --baseline out")
    work_dir = args.work_dir or (str(choice.run_dir) if choice.run_dir else default_work_dir(choice.config))
    loaders = ["test_dataloader"] + (["train_dataloader"] if args.baseline == "constant" else [])
    cfg = load_checked(choice.config, args, loaders=loaders, work_dir=work_dir)
    if args.baseline is not None:
        from perception.engine.baselines import score_baseline

        metrics = score_baseline(cfg, args.baseline, subset=args.subset)
    else:
        from perception.engine import evaluate

        metrics = evaluate(
            cfg, model_path, untrained=args.untrained, subset=args.subset, submission=args.format_only
        )
    if args.format_only is not None:
        say(f"predictions written to {args.format_only}")
        return exit_codes.OK
    print_metrics(metrics)
    say(f"written to {work_dir}")
    return exit_codes.OK
