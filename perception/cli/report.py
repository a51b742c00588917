"""``perception report``."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_checked
from perception.cli._parser import add_data_root, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "report",
        run,
        summary="write one HTML page about one run or several",
        examples="""
        perception report work_dirs/nano
        perception report work_dirs/sum work_dirs/pcgrad work_dirs/mclgs --out report.html
        perception report work_dirs/nano-compare --reference pcgrad
        perception report work_dirs/sum work_dirs/pcgrad --single det=work_dirs/det,seg=work_dirs/seg
        perception report work_dirs/sum work_dirs/pcgrad --draw 1   (predicts and draws the samples it shows)
        perception report work_dirs/demo --seconds setup=120 synthesize=95.5
        """,
    )
    parser.add_argument(
        "run_folders",
        metavar="WORK_DIR",
        nargs="+",
        help="run folder, folder of seed<k>, or a folder of `perception compare`; seeds of one method are one row",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page; default report.html in the folder, of several in the one above",
    )
    parser.add_argument(
        "--single",
        default="",
        metavar="TASK=RUN,...",
        help="single-task runs that Δm is against; those of a compare folder are found by themselves",
    )
    parser.add_argument(
        "--scores",
        metavar="TASK=METRIC+METRIC,...",
        help="metrics in Δm and Acc_MTL (default det=NDS,seg=mIoU, of images det=AP,seg=mIoU)",
    )
    parser.add_argument(
        "--reference", metavar="NAME", help="the run that differences are from (default the first)"
    )
    parser.add_argument(
        "--draw",
        type=positive_int,
        metavar="N",
        help="first predict and draw the N best, worst and most changed samples, by the scores of `perception test`; "
        "needs the data and the weights",
    )
    parser.add_argument(
        "--seconds",
        nargs="+",
        default=[],
        metavar="STEP=SECONDS",
        help="times of steps outside the run, merged into its summary.json",
    )
    add_data_root(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    from perception.config import ConfigError
    from perception.engine.compare_plan import read_pairs, read_scores
    from perception.engine.report_scores import draw_samples, score_groups
    from perception.utils import DataError
    from perception.visualization import find_reference, find_runs, read_groups, write_report

    scores = None if args.scores is None else read_scores(args.scores)
    singles = read_pairs(args.single, "--single", list(scores or ("det", "seg")))
    try:
        for folder in (*args.run_folders, *singles.values()):
            find_runs(folder)
    except DataError as error:
        raise ConfigError(str(error)) from None
    if args.out is not None and Path(args.out).is_dir():
        raise ConfigError(
            f"--out {args.out} is a folder; give the page's file, for example {args.out}/report.html"
        )
    if args.data_root is not None and args.draw is None:
        raise ConfigError("--data-root is for --draw: without it the report reads the run folders only")
    if args.seconds:
        if len(args.run_folders) > 1:
            raise ConfigError("--seconds belongs to one run; give one folder")
        merge_seconds(Path(args.run_folders[0]), args.seconds)
    if args.draw is not None:
        groups = read_groups(args.run_folders, singles=singles)
        load = partial(_load, args=argparse.Namespace(data_root=args.data_root, overrides=[]))
        draw_samples(groups, find_reference(groups, args.reference), load, num=args.draw)
    path = write_report(
        args.run_folders,
        args.out,
        singles=singles,
        reference=args.reference,
        score_groups=partial(score_groups, scores=scores),
        num_samples=args.draw or 1,
    )
    print(path)
    return exit_codes.OK


def merge_seconds(folder: Path, entries: list[str]) -> None:
    """Add ``step=seconds`` entries to the summary's ``seconds``.

    Raises:
        ConfigError: an entry is malformed.
    """
    from perception.config import ConfigError
    from perception.engine import update_summary

    seconds = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            seconds[name] = round(float(value), 1)
        except ValueError:
            raise ConfigError(f"--seconds {entry}: expected STEP=SECONDS, for example setup=120.") from None
    update_summary(folder, {"seconds": seconds})


def _load(folder: Path, args: argparse.Namespace) -> Any:
    return load_checked(folder, args, loaders=("test_dataloader",))
