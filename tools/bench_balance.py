#!/usr/bin/env python
"""Measure what a training step costs with each balancing method, beside TorchJD's and LibMTL's ways to do it.

Examples:
    python tools/bench_balance.py
    python tools/bench_balance.py bevformer_nano --steps 20 --threads 1 --out work_dirs/balance_nano.json

The same as `perception bench balance`; its options and exit codes are those.
"""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "balance", *sys.argv[1:]]))
