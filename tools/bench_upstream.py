#!/usr/bin/env python
"""Time the encoder and decoder of bevformer_official_tiny beside the official modules, interleaved, on the CPU.

Examples:
    python tools/bench_upstream.py --upstream peer/BEVFormer --deps peer/mmcv peer/mmdetection3d peer/packages
    python tools/bench_upstream.py --baseline rebatching --rounds 3

Same inputs, same weights; what both compute is compared first. Each side has a process of its own, and they take turns.
The official code stays as it is: only compiled extensions (mmcv._ext, torchvision's operators), which the CPU does not
use, are stubs. Compare on an idle machine. Without --upstream, --help says how to get the official code.
Exit code 0; 1 if a side can't be built or the outputs differ; 2 for a wrong option.
"""

import argparse
import sys
from pathlib import Path

from perception.engine.upstream_benchmark import REMEDY, run_upstream_benchmark, upstream_table
from perception.engine.upstream_benchmark.benchmark import WorkerError


def main() -> int:
    """Parse the arguments, run, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=REMEDY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--upstream", type=Path, metavar="DIR", help="checkout of the official BEVFormer")
    parser.add_argument("--deps", type=Path, nargs="+", default=[], metavar="DIR", help="what it imports")
    parser.add_argument("--baseline", choices=["rebatching"], help="a plain loop of ours to compare with")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N", help="default 1 4")
    parser.add_argument(
        "--geometry", type=Path, metavar="NPZ", help="bench_inputs.npz of the parity fixtures"
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: CPU time, for --threads 1 on a busy machine",
    )
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the result there")
    args = parser.parse_args()
    if min(args.threads, args.rounds, *args.batch) < 1:
        parser.error("--threads, --rounds and --batch must be 1 or more")
    if args.upstream is None and args.baseline is None:
        parser.error(f"give --upstream, --baseline or both.\n{REMEDY}")
    for path in (args.upstream, *args.deps):
        if path is not None and not path.is_dir():
            parser.error(f"no folder {path}.\n{REMEDY}")
    if args.geometry is not None and not args.geometry.is_file():
        parser.error(f"no file {args.geometry}; without --geometry, cameras like nuScenes' are taken")
    # Where things lie does not belong into a result that may be published.
    chosen = {"baseline": args.baseline, "threads": args.threads, "rounds": args.rounds}
    words = [f"--{key} {value}" for key, value in chosen.items() if value is not None]
    if args.clock != "wall":
        words.append(f"--clock {args.clock}")
    if args.upstream is not None:
        words.insert(0, "--upstream peer/BEVFormer --deps ...")
    try:
        result = run_upstream_benchmark(
            upstream=args.upstream,
            deps=args.deps,
            with_rebatching=args.baseline is not None,
            threads=args.threads,
            rounds=args.rounds,
            batches=sorted(set(args.batch)),
            out=args.out,
            geometry=args.geometry,
            clock=args.clock,
            command=" ".join(["python tools/bench_upstream.py", *words]),
        )
    except WorkerError as error:
        print(f"bench_upstream: error: {error}", file=sys.stderr)
        if "official" in str(error):
            print(REMEDY, file=sys.stderr)
        return 1
    print(upstream_table(result))
    for side, reasons in result["failures"].items():
        for batch, reason in reasons.items():
            print(f"{side} does not run at batch {batch}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
