"""Entry point: choose the verb, run it, turn errors into one message and an exit code."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from perception import __version__
from perception.cli import (
    bench,
    browse,
    check,
    compare,
    config,
    convert_checkpoint,
    data,
    doctor,
    exit_codes,
    export,
    predict,
    pseudo_label,
    report,
    test,
    train,
    verify,
    visualize,
)

_VERBS = (
    train,
    test,
    predict,
    verify,
    pseudo_label,
    compare,
    data,
    browse,
    check,
    doctor,
    config,
    convert_checkpoint,
    export,
    visualize,
    report,
    bench,
)


class _Parser(argparse.ArgumentParser):
    """Proposes the nearest verb or option when one is misspelt."""

    def error(self, message: str) -> None:  # type: ignore[override]
        from perception.config.suggest import did_you_mean

        self.print_usage(sys.stderr)
        hint = ""
        if "invalid choice: " in message:
            word = message.split("invalid choice: ")[1].split(" ")[0].strip("'\"")
            actions = [action for action in self._actions if action.choices]
            hint = did_you_mean(word, [str(choice) for action in actions for choice in action.choices or ()])
        elif "unrecognized arguments: " in message:
            word = message.split("unrecognized arguments: ")[1].split(" ")[0].split("=")[0]
            hint = did_you_mean(word, list(self._option_string_actions))
        self.exit(exit_codes.USAGE, f"{self.prog}: error: {message}.{hint}\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="perception",
        description="Train, score and look at multi-task driving perception models.",
        epilog="examples:\n"
        "  perception data synthesize --out data/nuscenes-synthetic --scenes 10\n"
        "  perception train bevformer_nano --work-dir work_dirs/nano\n"
        "  perception test work_dirs/nano\n\n" + exit_codes.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"perception {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        The exit code, see :mod:`perception.cli.exit_codes`.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        verb = next((word for word in (argv or sys.argv[1:]) if not word.startswith("-")), "")
        _verb_parser(parser, verb).error(f"unrecognized arguments: {' '.join(rest)}")
    is_verbose = args.verbose or os.environ.get("PERCEPTION_DEBUG", "") not in ("", "0")
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("perception: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return exit_codes.OK
    except Exception as error:  # noqa: BLE001  the one place where errors become messages
        code, message = explain(error)
        if is_verbose or message is None:
            traceback.print_exception(error)
        who = f"rank {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        message = message or f"unexpected {type(error).__name__}, see above"
        print(f"perception: error: {who}{message}", file=sys.stderr, flush=True)
        if type(error).__name__ == "RankFailure":
            from perception.engine.rank_watch import end_process

            sys.stdout.flush()
            end_process(code)
        return code


def explain(error: BaseException) -> tuple[int, str | None]:
    """Exit code and message of an error; no message where only the traceback tells what happened."""
    from perception.checkpoint.errors import CheckpointError
    from perception.config.errors import ConfigError
    from perception.utils.errors import DataError

    codes = (
        (ConfigError, exit_codes.USAGE),
        (DataError, exit_codes.DATA),
        (CheckpointError, exit_codes.CHECKPOINT),
        (FloatingPointError, exit_codes.RUN_FAILED),
        (ValueError, exit_codes.RUN_FAILED),
        (NotImplementedError, exit_codes.RUN_FAILED),
    )
    # By name, because importing these classes would import the whole engine, or NumPy.
    engine_codes = {
        "WorkDirError": exit_codes.USAGE,
        "RankFailure": exit_codes.RUN_FAILED,
        "ModelError": exit_codes.CHECKPOINT,
    }
    if type(error).__name__ in engine_codes:
        return engine_codes[type(error).__name__], str(error)
    for kind, code in codes:
        if isinstance(error, kind):
            return code, _last_line(str(error), type(error).__name__) or None
    if isinstance(error, OSError):
        is_plain = error.filename is None
        return exit_codes.RUN_FAILED, str(error) if is_plain else f"{error.strerror}: {error.filename}"
    return exit_codes.RUN_FAILED, None


def _last_line(message: str, name: str) -> str:
    """The message alone where a data loader has wrapped it into its worker's traceback."""
    marker = f"{name}: "
    return (
        message.rpartition(marker)[2].strip()
        if message.startswith("Caught ") and marker in message
        else message
    )


def _verb_parser(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and verb in action.choices:
            return action.choices[verb]
    return parser


if __name__ == "__main__":
    sys.exit(main())
