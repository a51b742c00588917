"""``perception visualize``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_checked
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "visualize",
        run,
        summary="draw a run's predictions on its test split next to the ground truth",
        examples="""
        perception visualize work_dirs/nano
        perception visualize work_dirs/nano/checkpoints/step_00000960 --num 12 --out pictures
        """,
    )
    parser.add_argument("run_folder", metavar="RUN", help="run folder or checkpoint in one")
    parser.add_argument("--out", help="folder for the pictures; default RUN/pictures")
    parser.add_argument("--num", type=positive_int, default=6, help="number of samples (default 6)")
    parser.add_argument("--score-threshold", type=float, default=0.2, help="boxes below are not drawn")
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Draw."""
    from perception.config import ConfigError

    choice = choose_model(args.run_folder, None)
    if choice.run_dir is None:
        raise ConfigError(f"{args.run_folder} is no run folder; train first, or use `perception predict`.")
    cfg = load_checked(choice.config, args, loaders=("test_dataloader",))
    from perception.engine.pictures import draw_predictions, list_pictures

    written = draw_predictions(
        cfg,
        choice.checkpoint or args.run_folder,
        out=args.out or str(choice.run_dir / "pictures"),
        num=args.num,
        score_threshold=args.score_threshold,
    )
    list_pictures(choice.run_dir, written)
    for path in written:
        print(path)
    return exit_codes.OK
