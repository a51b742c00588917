#!/usr/bin/env python
"""Compare balancing methods on real images in minutes of one CPU core, without a download.

Examples:
    python tools/bench_digits.py
    python tools/bench_digits.py --methods sum,pcgrad,wpcgrad-dtp --seeds 5 --out work_dirs/digits-few

Two of scikit-learn's handwritten digits overlaid; tasks: the left digit, the right digit, the reconstruction. Without
--methods every balancing method runs. Stopped, the same command goes on: finished runs are read from --out.
Exit code 0; 1 if a run failed (the others are in the table); 2 for a wrong option.
"""

import argparse
import sys
from pathlib import Path

from perception.engine.digits_benchmark import (
    TABLE_FILE,
    check_digits_methods,
    run_digits_benchmark,
    use_one_thread,
)
from perception.engine.digits_training import DigitsSettings


def main() -> int:
    """Parse the arguments, run, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--methods", metavar="NAME,NAME", help="default: every method of balancer_names()")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default 3)")
    parser.add_argument("--epochs", type=int, default=DigitsSettings.epochs, help="default %(default)s")
    parser.add_argument("--out", default="work_dirs/digits", help="results (default %(default)s)")
    args = parser.parse_args()
    if args.seeds < 1 or args.epochs < 1:
        parser.error("--seeds and --epochs must be 1 or more")
    settings = DigitsSettings(epochs=args.epochs)
    methods = None if args.methods is None else args.methods.split(",")
    try:
        problems = check_digits_methods(methods or (), settings)
    except ValueError as error:
        parser.error(str(error))
    if problems:
        parser.error("; ".join(f"{name}: {why}" for name, why in problems.items()))
    use_one_thread()
    # Without --out, which says where and not what: the result can then be published.
    chosen = {"methods": args.methods, "seeds": args.seeds, "epochs": args.epochs}
    options = [f" --{key} {value}" for key, value in chosen.items() if value != parser.get_default(key)]
    command = "python tools/bench_digits.py" + "".join(options)
    result = run_digits_benchmark(
        methods, num_seeds=args.seeds, out=args.out, settings=settings, command=command
    )
    print((Path(args.out) / TABLE_FILE).read_text(encoding="utf-8"))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
