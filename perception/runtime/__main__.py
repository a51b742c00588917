"""``python -m perception.runtime verify DIR``: for a machine with nothing but NumPy, onnxruntime and this package."""

import argparse
import sys
from collections.abc import Sequence

from perception.runtime.errors import ModelError
from perception.runtime.verify import verify_export

_FAILED, _DAMAGED = 2, 4
"""Exit codes, those of the command line: wrong arguments; a model that is damaged or not what it says."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m perception.runtime", description=__doc__, allow_abbrev=False
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    verify = verbs.add_parser(
        "verify", help="check an export's hashes and repeat its proof", allow_abbrev=False
    )
    verify.add_argument("folder", metavar="DIR", help="export folder")
    verify.add_argument(
        "--variant", action="append", help="only this one, fp32, fp16 or int8; may be repeated"
    )
    verify.add_argument("--threads", type=int, help="of onnxruntime")
    args = parser.parse_args(argv)
    try:
        verify_export(args.folder, variants=args.variant, num_threads=args.threads, report=print)
    except (ModelError, ValueError) as error:
        print(f"perception.runtime: error: {error}", file=sys.stderr)
        return _DAMAGED if isinstance(error, ModelError) else _FAILED
    print("verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
