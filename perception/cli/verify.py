"""``perception verify``."""

import argparse
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._output import say
from perception.cli._parser import add_variant, add_verb, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "verify",
        run,
        summary="check that an export or a checkpoint is what was written, and that an export does what its proof says",
        examples="""
        perception verify exports/nano
        perception verify exports/nano --variant int8
        perception verify work_dirs/nano                      (all checkpoints of the run)
        perception verify work_dirs/nano/checkpoints/step_00000960
        """,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="export folder, run folder, step folder or .safetensors file"
    )
    add_variant(parser)
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of an export: threads of onnxruntime"
    )


def run(args: argparse.Namespace) -> int:
    """Verify."""
    from perception.config import ConfigError
    from perception.runtime import is_export, verify_export

    if is_export(args.model):
        variants = None if args.variant is None else [args.variant]
        verify_export(args.model, variants=variants, num_threads=args.threads, report=say)
        say(f"{args.model} is what was exported, and does what its proof says")
        return exit_codes.OK
    if args.variant is not None or args.threads is not None:
        raise ConfigError(f"--variant and --threads go with an export folder; {args.model} has no model.json")
    return _verify_checkpoints(Path(args.model))


def _verify_checkpoints(path: Path) -> int:
    from perception.checkpoint import (
        CheckpointError,
        check_path,
        list_checkpoints,
        load_weights,
        verify_checkpoint,
    )

    check_path(path)
    if path.is_file():
        found = load_weights(path)
        say(f"{path.name}: {len(found.model_state)} tensors; a bare file has no hash to compare with")
        return exit_codes.OK
    if (path / "manifest.json").is_file():
        steps = [path]
    else:
        steps = list_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if not steps:
        raise CheckpointError("there is neither a checkpoint nor an exported model here", path=path)
    problems = []
    for step in steps:
        try:
            manifest = verify_checkpoint(step)
        except CheckpointError as error:
            problems.append(str(error))
            say(f"{step.name}: DAMAGED, {error}")
        else:
            say(f"{step.name}: {len(manifest['files'])} files have the hashes of the manifest")
    return exit_codes.CHECKPOINT if problems else exit_codes.OK
