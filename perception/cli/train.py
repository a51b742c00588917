"""``perception train``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import default_work_dir, load_checked
from perception.cli._output import say
from perception.cli._parser import add_bad_sample, add_data_root, add_overrides, add_verb


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "train",
        run,
        summary="train a model by a config",
        examples="""
        perception train bevformer_nano
        perception train bevformer_nano --work-dir work_dirs/a --set train_cfg.max_epochs=2
        perception train bevformer_tiny --data-root /data/nuscenes
        perception train bevformer_nano --resume              (continues work_dirs/bevformer_nano)
        perception train bevformer_tiny --dry-run             (2 train steps, 2 eval steps, save, resume)
        """,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file or short name, see `perception config ls`"
    )
    parser.add_argument("--work-dir", help="run folder; default work_dirs/<short name>")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the run folder's latest valid checkpoint"
    )
    parser.add_argument("--dry-run", action="store_true", help="2 train steps, 2 eval steps, save and resume")
    add_bad_sample(parser, "train on another one instead, for at most one in a thousand")
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything that can be known before, then train."""
    if args.on_bad_sample is not None:
        args.overrides = [f"train_dataloader.dataset.on_error={args.on_bad_sample}", *args.overrides]
    cfg = load_checked(
        args.config,
        args,
        loaders=("train_dataloader", "val_dataloader"),
        work_dir=args.work_dir or default_work_dir(args.config),
    )
    if args.dry_run:
        return _rehearse(cfg, args.config)
    from perception.engine import train

    train(cfg, resume=args.resume)
    say(f"run folder: {cfg.work_dir}")
    say(f"next: perception test {cfg.work_dir}   |   perception report {cfg.work_dir}")
    return exit_codes.OK


def _rehearse(cfg: Any, name: str) -> int:
    from perception.engine import rehearse

    metrics = rehearse(cfg)
    evaluation = (
        f"2 evaluation batches ({len(metrics)} metrics)"
        if metrics
        else "no evaluation, since the config has none"
    )
    say("dry run passed; no model was trained")
    say(f"checked: 2 training steps with a save and a resume between them, {evaluation}")
    say(f"run folder {cfg.work_dir} is as it was; the dry run wrote beside it and removed that again")
    say(f"next: the same command without --dry-run, which trains {name}")
    return exit_codes.OK
