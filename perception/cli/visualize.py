"""``perception visualize``."""

import argparse
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_checked
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int

_NUM = 6
_SCORE_THRESHOLD = 0.2


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "visualize",
        run,
        summary="draw a run's predictions next to the ground truth, or how its tasks were balanced",
        examples="""
        perception visualize work_dirs/nano
        perception visualize work_dirs/nano/checkpoints/step_00000960 --num 12 --out pictures
        perception visualize balance work_dirs/nano
        """,
    )
    parser.add_argument(
        "what",
        metavar="balance",
        nargs="?",
        choices=("balance",),
        help="draw conflicts, weights and gradient norms over the training steps, from RUN/log.jsonl alone",
    )
    parser.add_argument(
        "run_folder", metavar="RUN", help="run folder; for predictions also a checkpoint in one"
    )
    parser.add_argument("--out", help="folder for the pictures; default RUN/pictures, for balance RUN")
    parser.add_argument("--num", type=positive_int, help=f"number of samples (default {_NUM})")
    parser.add_argument(
        "--score-threshold", type=float, help=f"boxes below are not drawn (default {_SCORE_THRESHOLD})"
    )
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Draw."""
    from perception.config import ConfigError

    if args.what == "balance":
        return draw_balance(args)
    choice = choose_model(args.run_folder, None)
    if choice.run_dir is None:
        raise ConfigError(f"{args.run_folder} is no run folder; train first, or use `perception predict`.")
    cfg = load_checked(choice.config, args, loaders=("test_dataloader",))
    from perception.engine.pictures import draw_predictions, list_pictures

    written = draw_predictions(
        cfg,
        choice.checkpoint or args.run_folder,
        out=args.out or str(choice.run_dir / "pictures"),
        num=args.num or _NUM,
        score_threshold=_SCORE_THRESHOLD if args.score_threshold is None else args.score_threshold,
    )
    list_pictures(choice.run_dir, written)
    for path in written:
        print(path)
    return exit_codes.OK


def draw_balance(args: argparse.Namespace) -> int:
    """Draw a run's balancing.

    Raises:
        ConfigError: there is no log, or an option is given that only predictions take.
        ValueError: the log says nothing of balancing.
    """
    from perception.config import ConfigError

    given = {
        "--num": args.num,
        "--score-threshold": args.score_threshold,
        "--data-root": args.data_root,
        "--set": args.overrides or None,
    }
    unused = [option for option, value in given.items() if value is not None]
    if unused:
        raise ConfigError(
            f"`visualize balance` reads the log alone and takes no {', '.join(unused)}; leave it out."
        )
    folder = Path(args.run_folder)
    log = folder / "log.jsonl"
    if not log.is_file():
        raise ConfigError(f"{folder} has no log.jsonl; give the run folder of a `perception train`.")
    from perception.visualization import plot_balance

    print(plot_balance(log, Path(args.out or folder) / "balance.png"))
    return exit_codes.OK
