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
        perception compare fcos_nano --plan projects/mclgs/table4.json --single det=fcos_nano_det,seg=fcos_nano_seg
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
        "--plan",
        metavar="FILE",
        help="JSON of a paper's table: its balancers, of which --balancers then chooses some by their labels, its "
        "metrics and its printed numbers, which the page shows beside ours",
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
        "--pseudo-labels",
        action="store_true",
        help="the single-task models label the training images, per seed into DIR/pseudo/seed<k>, and the compared "
        "runs learn from these labels too; their config needs model.label_weights",
    )
    parser.add_argument(
        "--scores",
        metavar="TASK=METRIC+METRIC,...",
        help="metrics in Δm and Acc_MTL (default the plan's; else det=NDS,seg=mIoU, of images det=AP,seg=mIoU)",
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
    if args.pseudo_labels:  # each seed's own take the place of the config's, which need not be there
        args.overrides = [*args.overrides, "train_dataloader.dataset.pseudo_labels=null"]
    work_dir = Path(args.work_dir or _default_folder(args.config))
    loaders = ("train_dataloader", "val_dataloader")
    cfg = load_checked(args.config, args, loaders=loaders, work_dir=str(work_dir))
    from perception.engine.compare import PAGE_FILE, compare, find_single_runs
    from perception.engine.compare_plan import (
        plan_runs,
        read_balancers,
        read_pairs,
        read_scores,
    )
    from perception.engine.compare_scores import default_scores, mean_metrics
    from perception.engine.compare_table import PaperTable
    from perception.utils import did_you_mean

    labels = [name for name in args.balancers.split(",") if name]
    table = None if args.plan is None else PaperTable.read(args.plan)
    planned = {} if table is None else table.choose(labels)
    balancers = read_balancers([] if table else labels, args.balancers_file, among=planned)
    if args.reference is not None and args.reference not in balancers:
        raise ConfigError(
            f"--reference names {args.reference!r}.{did_you_mean(args.reference, balancers)} Allowed: "
            f"{', '.join(balancers)}"
        )
    scores = default_scores(cfg) if table is None else table.scores
    if args.scores is not None:
        scores = read_scores(args.scores)
    named = read_pairs(args.single, "--single", list(scores))
    earlier = {task: found for task, value in named.items() if (found := find_single_runs(value)) is not None}
    singles = {
        task: load_checked(value, _without_overrides(args), loaders=loaders, work_dir=str(work_dir))
        for task, value in named.items()
        if task not in earlier
    }
    metrics = {name: value for found in earlier.values() for name, value in mean_metrics(found).items()}
    runs = plan_runs(
        cfg,
        balancers,
        num_seeds=args.seeds,
        work_dir=work_dir,
        singles=singles,
        single_metrics=metrics,
        use_pseudo_labels=args.pseudo_labels,
    )
    result = compare(
        runs,
        work_dir=work_dir,
        config=args.config,
        command=shlex.join(["perception", *sys.argv[1:]]),
        singles=earlier,
        single_folders={task: named[task] for task in earlier},
        scores=scores,
        reference=args.reference,
        table=table,
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
    """``--set`` of balancing and pseudo labels belongs to the compared runs; all else to single tasks too."""
    own = (
        "optim_wrapper.balancer",
        "optim_wrapper.watch",
        "optim_wrapper.gradient_source",
        "optim_wrapper.interval",
        "train_dataloader.dataset.pseudo_labels",
    )
    kept = [text for text in args.overrides if not text.startswith(own)]
    return argparse.Namespace(**{**vars(args), "overrides": kept})
