"""``perception test``."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import (
    choose_model,
    default_work_dir,
    load_changed,
    load_checked,
    require_weights,
)
from perception.cli._model import ModelChoice
from perception.cli._output import print_metrics, say
from perception.cli._parser import add_data_root, add_overrides, add_variant, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "test",
        run,
        summary="score a model, an export or a baseline with the official metrics",
        examples="""
        perception test work_dirs/nano                        (latest valid checkpoint)
        perception test work_dirs/nano/checkpoints/step_00000960
        perception test bevformer_nano --checkpoint model.safetensors
        perception test exports/nano --variant int8           (what is deployed, by onnxruntime)
        perception test bevformer_nano --untrained
        perception test bevformer_nano --baseline constant
        perception test work_dirs/nano --subset 20            (quick look, not comparable)
        perception test work_dirs/nano --format-only submission   (writes the predictions, scores nothing)
        perception test work_dirs/nano --index my_index/v1.0-test_test.json --format-only --out results.json
        """,
    )
    parser.add_argument(
        "model",
        metavar="MODEL_OR_CONFIG",
        help="run folder, checkpoint, export folder, config file or short name",
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
        "--index",
        metavar="FILE",
        help="index of another split, as `perception data prepare` wrote it; the metrics' version and split follow",
    )
    parser.add_argument(
        "--format-only",
        metavar="DIR",
        nargs="?",
        const="",
        help="write the predictions into DIR, or to --out, in the data set's submission format and score nothing, for "
        "a split without labels",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="with --format-only: the submission file, ending in .json"
    )
    parser.add_argument(
        "--work-dir", help="where results go; default the run or export folder, or work_dirs/<short name>"
    )
    add_variant(parser)
    parser.add_argument(
        "--full-images",
        action="store_true",
        help="of an export: decode images in full, as a vehicle does, where training decodes them at a fraction",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of an export: threads of onnxruntime"
    )
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Score."""
    choice = choose_model(args.model, args.checkpoint)
    _check_options(args, choice)
    needs_weights = not args.untrained and args.baseline is None and choice.export is None
    model_path = None
    if needs_weights:
        model_path = require_weights(choice, "add --checkpoint PATH, --untrained or --baseline constant.")
    folder = choice.run_dir or choice.export
    work_dir = args.work_dir or (str(folder) if folder else default_work_dir(choice.config))
    loaders = ["test_dataloader"] + (["train_dataloader"] if args.baseline == "constant" else [])
    if args.index is not None:
        from perception.engine.evaluation_parts import index_overrides

        args.overrides = [*index_overrides(load_changed(choice.config, args), args.index), *args.overrides]
    cfg = load_checked(choice.config, args, loaders=loaders, work_dir=work_dir)
    with _submission_folder(args) as submission:
        metrics = _score(args, choice, cfg, model_path, submission)
    if args.format_only is not None:
        say(f"predictions written to {args.out or args.format_only}")
        return exit_codes.OK
    print_metrics(metrics)
    say(f"written to {work_dir}")
    return exit_codes.OK


def _score(
    args: argparse.Namespace, choice: ModelChoice, cfg: Any, model_path: str | None, submission: str | None
) -> Any:
    if args.baseline is not None:
        from perception.engine.baselines import score_baseline

        return score_baseline(cfg, args.baseline, subset=args.subset)
    if choice.export is not None:
        from perception.engine.export_run import evaluate_export

        return evaluate_export(
            cfg,
            choice.export,
            variant=args.variant or "fp32",
            subset=args.subset,
            submission=submission,
            full_images=args.full_images,
            num_threads=args.threads,
            out=args.work_dir,
        )
    from perception.engine import evaluate

    return evaluate(cfg, model_path, untrained=args.untrained, subset=args.subset, submission=submission)


def _check_options(args: argparse.Namespace, choice: ModelChoice) -> None:
    from perception.config import ConfigError

    if args.format_only is not None and args.baseline is not None:
        raise ConfigError("--format-only writes a model's predictions; leave --baseline out")
    if args.format_only == "" and args.out is None:
        raise ConfigError("--format-only needs a folder, or --out FILE for nuScenes' one file")
    if args.out is not None and args.format_only != "":
        raise ConfigError("--out FILE goes with --format-only, without a folder behind it")
    if args.out is not None and Path(args.out).suffix != ".json":
        raise ConfigError(
            f"--out {args.out} must end in .json, as submission files do; for a folder use --format-only DIR"
        )
    if choice.export is None:
        given = {
            "--variant": args.variant,
            "--full-images": args.full_images or None,
            "--threads": args.threads,
        }
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option} goes with an export folder, {args.model} is none; leave it out")
    elif args.untrained or args.baseline is not None:
        raise ConfigError(f"{args.model} is an export folder; leave --untrained and --baseline out")


@contextmanager
def _submission_folder(args: argparse.Namespace) -> Iterator[str | None]:
    """Where the predictions go: the folder named, or one whose only file becomes ``--out`` in the end."""
    if args.format_only is None or args.out is None:
        yield args.format_only
        return
    from perception.config import ConfigError

    out = Path(args.out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".perception-") as folder:
        yield folder
        if int(os.environ.get("RANK", 0)) > 0:  # the first rank writes
            return
        written = list(Path(folder).iterdir())
        if len(written) != 1 or not written[0].is_file():
            names = ", ".join(sorted(path.name for path in written)) or "nothing"
            raise ConfigError(f"this data set's submission is {names}, not one file; use --format-only DIR")
        written[0].replace(out)
