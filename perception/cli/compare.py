"""``perception compare``."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import default_work_dir, load_checked
from perception.cli._output import say
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "compare",
        run,
        summary="train a config with several balancers and seeds, and put their scores into one table",
        examples="""
        perception compare bevformer_nano --balancers sum,pcgrad,wpcgrad-dtp,mclgs --seeds 3
        perception compare bevformer_nano --balancers sum,pcgrad --single det=bevformer_nano_det,seg=bevformer_nano_seg
        perception compare bevformer_nano --balancers sum,amtl --single det=work_dirs/det,seg=work_dirs/seg
        perception compare bevformer_nano --balancers-file balancers.json --work-dir work_dirs/arguments
        perception compare bevformer_nano --balancers sum,pcgrad,wpcgrad-dtp --reference pcgrad
        perception compare bevformer_nano --balancers sum,mgda --set optim_wrapper.watch.gram_interval=20
        """,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file or short name of the multi-task model")
    parser.add_argument(
        "--balancers",
        default="",
        metavar="NAME,NAME",
        help="names as in optim_wrapper.balancer; each takes the place of the config's own",
    )
    parser.add_argument(
        "--balancers-file",
        metavar="FILE",
        help='JSON of balancers with arguments: {"cagrad-0.2": {"name": "cagrad", "c": 0.2}, ...}',
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=3, metavar="N", help="seeds 0 to N-1 (default 3)"
    )
    parser.add_argument(
        "--single",
        default="",
        metavar="TASK=CONFIG,...",
        help="single-task configs, trained too, or finished run folders: Δm is against these; amtl and achievement "
        "take their potentials from finished folders",
    )
    parser.add_argument(
        "--scores",
        metavar="TASK=METRIC+METRIC,...",
        help="metrics in Δm and Acc_MTL (default det=NDS,seg=mIoU)",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="one of the balancers: the table gives all metrics in per cent of its own too",
    )
    parser.add_argument(
        "--table-only",
        action="store_true",
        help="train nothing: write the table of the runs that are finished",
    )
    parser.add_argument(
        "--work-dir",
        help="run folders are DIR/<balancer>/seed<k>, the table DIR/compare.md; default "
        "work_dirs/compare-<short name>. The same command goes on where it was stopped",
    )
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Check all runs, then train them."""
    from perception.config import ConfigError

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "compare runs in one process; train by tools/dist_train.sh and compare the run folders"
        )
    work_dir = Path(args.work_dir or _default_folder(args.config))
    loaders = ("train_dataloader", "val_dataloader")
    cfg = load_checked(args.config, args, loaders=loaders, work_dir=str(work_dir))
    from perception.engine.compare import PAGE_FILE, compare, find_single_runs
    from perception.engine.compare_plan import plan_runs, read_balancers, read_pairs, read_scores
    from perception.engine.compare_scores import DEFAULT_SCORES, mean_metrics
    from perception.utils import did_you_mean

    balancers = read_balancers([name for name in args.balancers.split(",") if name], args.balancers_file)
    if args.reference is not None and args.reference not in balancers:
        raise ConfigError(
            f"--reference names {args.reference!r}.{did_you_mean(args.reference, balancers)} Allowed: "
            f"{', '.join(balancers)}"
        )
    scores = DEFAULT_SCORES if args.scores is None else read_scores(args.scores)
    named = read_pairs(args.single, "--single", list(scores))
    earlier = {task: found for task, value in named.items() if (found := find_single_runs(value)) is not None}
    singles = {
        task: load_checked(value, _without_overrides(args), loaders=loaders, work_dir=str(work_dir))
        for task, value in named.items()
        if task not in earlier
    }
    metrics = {name: value for found in earlier.values() for name, value in mean_metrics(found).items()}
    runs = plan_runs(
        cfg, balancers, num_seeds=args.seeds, work_dir=work_dir, singles=singles, single_metrics=metrics
    )
    result = compare(
        runs,
        work_dir=work_dir,
        config=args.config,
        command=shlex.join(["perception", *sys.argv[1:]]),
        singles=earlier,
        scores=scores,
        reference=args.reference,
        is_reading_only=args.table_only,
    )
    say((work_dir / PAGE_FILE).read_text(encoding="utf-8"))
    for failure in result["failed"]:
        say(f"failed: {failure}")
    return exit_codes.RUN_FAILED if result["failed"] else exit_codes.OK


def _default_folder(config: str) -> str:
    folder = Path(default_work_dir(config))
    return str(folder.with_name(f"compare-{folder.name}"))


def _without_overrides(args: argparse.Namespace) -> argparse.Namespace:
    """``--set`` of balancing belongs to the compared runs; all else, e.g. the epochs, to single tasks too."""
    kept = [text for text in args.overrides if not text.startswith(("optim_wrapper.balancer", "optim_wrapper.watch",
            "optim_wrapper.gradient_source", "optim_wrapper.interval"))]  # fmt: skip
    return argparse.Namespace(**{**vars(args), "overrides": kept})
