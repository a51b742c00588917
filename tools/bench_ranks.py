#!/usr/bin/env python
"""Measure what a training step of several ranks costs beside torch's own DistributedDataParallel, over gloo.

Examples:
    python tools/bench_ranks.py
    python tools/bench_ranks.py --data-root data/nuscenes-synthetic --steps 40 --out docs/results/bench_ranks.json
    python tools/bench_ranks.py resnet18 --image-size 64 --ranks 4 --methods sum,pcgrad

Starts one process per rank on this machine, each with --threads threads, and prints a table; --out writes the numbers
as JSON and the table beside it as .md. Every rank has samples of its own from the config's training set; resnet18 is a
network with four small heads on random images. Methods: sum, pcgrad (exact), pcgrad-sketched (k = 65536), graddrop.
Exit code 0; 1 if a rank failed, 2 for a wrong option, 4 for a config or data that can't be read.
"""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RESNET18 = "resnet18"
_OPTIONS_ERROR, _DATA_ERROR = 2, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks, or be one of them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(words)
    return _be_a_rank(options, words) if "RANK" in os.environ else _start_ranks(options, words)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", nargs="?", default="bevformer_nano", help=f"config, or {RESNET18}")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank (default 1)")
    parser.add_argument("--steps", type=int, default=20, help="rounds (default 20)")
    parser.add_argument("--batch-size", type=int, help="samples of a rank; default the config's, or 2")
    parser.add_argument("--image-size", type=int, default=128, help=f"of {RESNET18} (default 128)")
    parser.add_argument("--methods", metavar="NAME,NAME", help="default all; DDP is always measured")
    parser.add_argument("--data-root", help="folder in nuScenes' format with an index; default the config's")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", metavar="JSON", help="file for the result")
    options = parser.parse_args(words)
    for name in ("ranks", "threads", "steps", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; allowed: 1 or more")
    return options


def _start_ranks(options: argparse.Namespace, words: Sequence[str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = str(options.threads)
    processes = []
    for rank in range(options.ranks):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.ranks),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": threads,
               "MKL_NUM_THREADS": threads}  # fmt: skip
        processes.append(subprocess.Popen([sys.executable, str(Path(__file__).resolve()), *words], env=env))
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    failed = [process.returncode for process in processes if process.returncode > 0]
    return failed[0] if failed else int(any(process.returncode for process in processes))


def _be_a_rank(options: argparse.Namespace, words: Sequence[str]) -> int:
    import torch
    import torch.distributed as dist

    import perception.datasets
    import perception.models  # noqa: F401  registers
    from perception.config import ConfigError, load_config, override_config, with_data_root
    from perception.engine.balance_workloads import Workload, config_workload, resnet18_workload
    from perception.engine.rank_benchmark import benchmark_ranks, ranks_table
    from perception.utils import DataError, write_json_atomic

    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def make() -> Workload:
        if options.config == RESNET18:
            return resnet18_workload(batch_size=options.batch_size or 2, image_size=options.image_size)
        config = load_config(options.config)
        if options.data_root:
            config = with_data_root(config, options.data_root)
        config = override_config(config, options.overrides)
        loader = config.train_dataloader
        size = options.batch_size or loader["batch_size"]
        return config_workload(
            options.config, config.model, loader["dataset"], batch_size=size, first=rank * size
        )

    methods = None if options.methods is None else options.methods.split(",")
    try:
        result = benchmark_ranks(make, methods=methods, num_steps=options.steps)
    except (ConfigError, DataError, ValueError) as error:
        if rank == 0:
            print(f"bench_ranks: error: {error}", file=sys.stderr)
        return _DATA_ERROR if isinstance(error, ConfigError | DataError) else _OPTIONS_ERROR
    result["command"] = shlex.join(["python", "tools/bench_ranks.py", *words])
    if rank == 0:
        page = ranks_table(result)
        if options.out:
            out = Path(options.out)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(out, result)
            out.with_suffix(".md").write_text(page, encoding="utf-8")
        print(page, end="")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
