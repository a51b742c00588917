"""``perception export``."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_changed, load_checked, require_weights
from perception.cli._output import print_json, say
from perception.cli._parser import add_data_root, add_overrides, add_verb, positive_int

NEEDED = ("onnx", "onnxruntime", "onnxscript")


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "export",
        run,
        summary="write an ONNX graph of a model, and prove on real samples that it is the same function",
        examples="""
        perception export work_dirs/nano --out exports/nano
        perception export bevformer_nano model.safetensors --out exports/nano --precision fp32 fp16
        perception export bevformer_small model.safetensors --out exports/small --batch dynamic
        perception export fcos_nano work_dirs/fcos_nano --out exports/fcos --precision int8 --calibrate 64
        perception export work_dirs/nano --out exports/nano --format onnx torch --overwrite
        """,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="config file, short name, run folder or checkpoint in one"
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="weights: run folder, step folder or .safetensors file; default those of CONFIG's run folder",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        nargs="+",
        default=["onnx"],
        choices=("onnx", "torch"),
        help="default onnx; torch: a .pt2 package",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        choices=("fp32", "fp16", "int8"),
        help="of the ONNX graphs; fp32 is always written (default fp32)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default=1,
        metavar="N",
        help="streams or images at once; or dynamic (default 1)",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=4, metavar="N", help="frames of the proof (default 4)"
    )
    parser.add_argument(
        "--calibrate",
        type=positive_int,
        default=32,
        metavar="N",
        help="training samples from which int8 takes its ranges (default 32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is in DIR")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_data_root(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Export."""
    require_export_extra()
    choice = choose_model(args.config, args.checkpoint)
    checkpoint = require_weights(
        choice, "name them behind it: perception export CONFIG CHECKPOINT --out DIR."
    )
    loaders = ["test_dataloader"] + (["train_dataloader"] if "int8" in args.precision else [])
    if args.data_root is not None:
        from perception.config import fit_to_root

        for loader in loaders:
            args.overrides = [*args.overrides, *fit_to_root(load_changed(choice.config, args), loader)]
    cfg = load_checked(choice.config, args, loaders=loaders)
    from perception.export import ExportOptions, export_model

    options = ExportOptions(
        formats=args.format,
        precisions=args.precision,
        batch=None if args.batch == "dynamic" else args.batch,
        num_steps=args.steps,
        num_calibration=args.calibrate,
        overwrite=args.overwrite,
    )
    result = export_model(cfg, checkpoint, args.out, name=_name(choice.config), options=options)
    if args.json:
        print_json(
            {
                "folder": str(result.folder),
                "bytes": result.sizes,
                "seconds": result.seconds,
                "measured": result.measured,
            }
        )
        return exit_codes.OK
    for variant, outputs in result.measured.items():
        for output, difference in outputs.items():
            found = f"differs from torch by {difference['max']:.1e} at most"
            print(
                f"{variant:5s} {output:7s} {found if difference['count'] else 'not compared: no box scores enough'}"
            )
    for file, size in result.sizes.items():
        print(f"{size / 1e6:9.2f} MB  {file}")
    say(f"written to {result.folder}")
    return exit_codes.OK


def require_export_extra() -> None:
    """Refuse to go on without the packages that exports need.

    Raises:
        ConfigError: names those that are missing, and the extra that brings them.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        from perception.config import ConfigError

        raise ConfigError(
            f"{', '.join(missing)} is not installed, which exports need; `pip install -e .[export]` brings it"
        )


def _batch(text: str) -> int | str:
    return text if text == "dynamic" else positive_int(text)


def _name(config: str) -> str:
    """The config's short name; a run folder's or a file's own name where it has none."""
    from perception.config import ConfigError, find_config, parse_config_name

    path = Path(config)
    if path.is_dir():
        return path.name
    try:
        return parse_config_name(find_config(config)).short
    except ConfigError:
        return path.stem
