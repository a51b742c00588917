"""``perception bench model | data``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_checked
from perception.cli._output import print_json
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb and its two kinds."""
    parser = verbs.add_parser(
        "bench", help="measure speed and memory", description="Measure speed and memory."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    model = add_verb(
        kinds,
        "model",
        run_model,
        summary="measure samples per second and peak memory of training or inference, without data loading",
        examples="""
        perception bench model bevformer_nano --mode train
        perception bench model bevformer_nano --mode predict --batch-size 1
        """,
    )
    model.add_argument("--mode", choices=("train", "predict"), default="train", help="what is measured")
    model.add_argument("--batch-size", type=positive_int, help="default the config's")
    model.add_argument("--steps", type=positive_int, default=10, help="steps measured (default 10)")
    model.add_argument("--device", help="e.g. cpu; default CUDA where it is there")
    data = add_verb(
        kinds,
        "data",
        run_data,
        summary="measure milliseconds per dataset item",
        examples="""
        perception bench data bevformer_nano
        perception bench data bevformer_nano --split val --items 50
        """,
    )
    data.add_argument("--split", choices=("train", "val", "test"), default="train", help="which data set")
    data.add_argument("--items", type=positive_int, default=20, help="items measured (default 20)")
    for kind in (model, data):
        kind.add_argument("config", metavar="CONFIG", help="config file, short name or run folder")
        kind.add_argument("--json", action="store_true", help="print JSON")
        add_data_root(kind)
        add_overrides(kind)


def run_model(args: argparse.Namespace) -> int:
    """Measure a model."""
    loader = "train_dataloader" if args.mode == "train" else "test_dataloader"
    cfg = load_checked(args.config, args, loaders=(loader,))
    from perception.engine.benchmark import benchmark_model

    result = benchmark_model(
        cfg.model,
        cfg[loader]["dataset"],
        training=args.mode == "train",
        batch_size=args.batch_size or cfg[loader]["batch_size"],
        num_steps=args.steps,
        device=args.device,
    )
    return _print({"mode": args.mode, **result}, args)


def run_data(args: argparse.Namespace) -> int:
    """Measure a data set."""
    loader = f"{args.split}_dataloader"
    cfg = load_checked(args.config, args, loaders=(loader,))
    from perception.engine.benchmark import benchmark_data

    return _print(benchmark_data(cfg[loader]["dataset"], num_items=args.items), args)


def _print(result: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        print_json(result)
    else:
        for name, value in result.items():
            print(f"{name:20s} {value:.3f}" if isinstance(value, float) else f"{name:20s} {value}")
    return exit_codes.OK
