"""``perception bench model | data | balance | comm | export``."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import load_changed, load_checked
from perception.cli._output import print_json
from perception.cli._parser import (
    add_data_root,
    add_overrides,
    add_verb,
    amounts,
    number_from_zero,
    positive_float,
    positive_int,
)

RESNET18 = "resnet18"


def add_parser(verbs: Any) -> None:
    """Add the verb and its kinds."""
    parser = verbs.add_parser(
        "bench", help="measure speed and memory", description="Measure speed and memory."
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    model = add_verb(
        kinds,
        "model",
        run_model,
        summary="measure samples per second, peak memory and the parts of a step, of training or prediction",
        examples="""
        perception bench model bevformer_nano
        perception bench model bevformer_nano --mode predict --batch-size 1 --threads 1
        perception bench model bevformer_small --data-root data/nuscenes-synthetic --out work_dirs/small.json
        """,
    )
    model.add_argument("--mode", choices=("train", "predict"), default="train", help="what is measured")
    model.add_argument("--batch-size", type=positive_int, help="default the config's")
    model.add_argument("--steps", type=positive_int, default=10, help="steps measured, twice (default 10)")
    model.add_argument(
        "--warmup", type=positive_int, default=3, help="steps before, not measured (default 3)"
    )
    model.add_argument("--threads", type=positive_int, help="CPU threads; default torch's")
    model.add_argument("--device", choices=("cpu", "cuda"), help="default CUDA where it is there")
    model.add_argument("--out", metavar="JSON", help="file for the result; the page goes beside it, as .md")
    data = add_verb(
        kinds,
        "data",
        run_data,
        summary="measure milliseconds per dataset item, and images per second and core",
        examples="""
        perception bench data bevformer_nano
        perception bench data bevformer_nano --split val --items 50
        perception bench data bevformer_nano --loading
        """,
    )
    data.add_argument("--split", choices=("train", "val", "test"), default="train", help="which data set")
    data.add_argument("--items", type=positive_int, default=20, help="items measured (default 20)")
    data.add_argument(
        "--loading",
        action="store_true",
        help="compare decoding in full, at reduced size and from an image cache",
    )
    balance = add_verb(
        kinds,
        "balance",
        run_balance,
        summary="measure a training step with each balancing method, and with TorchJD's and LibMTL's ways",
        examples="""
        perception bench balance
        perception bench balance resnet18 --methods pcgrad,pcgrad-features,torchjd-pcgrad --steps 20
        perception bench balance bevformer_nano --out work_dirs/balance_nano.json
        """,
    )
    balance.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        default=RESNET18,
        help=f"config, short name or run folder; or {RESNET18} (default), with four small heads on random images",
    )
    balance.add_argument("--methods", metavar="NAME,NAME", help="default all; an unknown name lists them")
    balance.add_argument("--steps", type=positive_int, default=10, help="rounds measured (default 10)")
    balance.add_argument("--batch-size", type=positive_int, help="default the config's; 2 for resnet18")
    balance.add_argument("--image-size", type=positive_int, help="of resnet18, pixels (default 128)")
    balance.add_argument("--threads", type=positive_int, help="CPU threads; default torch's")
    balance.add_argument("--device", help="e.g. cpu; default CUDA where it is there")
    balance.add_argument("--out", metavar="JSON", help="file for the result")
    comm = add_verb(
        kinds,
        "comm",
        run_comm,
        summary="reckon what ranks send each other in a step, and its time and memory, on paper",
        examples="""
        perception bench comm
        perception bench comm --method pcgrad --ranks 2,16 --parameters 43591231 --bandwidth 12.5
        perception bench comm --tasks 3 --sketch-size 16384 --bucket-mb 1024 --out work_dirs/comm.json
        """,
    )
    _add_comm_options(comm)
    export = add_verb(
        kinds,
        "export",
        run_export,
        summary="measure the latency of exported graphs beside torch, with their sizes and differences",
        examples="""
        perception bench export exports/nano
        perception bench export exports/nano exports/small --rounds 30 --threads 2 --out work_dirs/exports.json
        """,
    )
    export.add_argument("folders", metavar="DIR", nargs="+", help="what `perception export` wrote")
    export.add_argument(
        "--rounds", type=positive_int, default=20, help="passes measured of each (default 20)"
    )
    export.add_argument(
        "--threads", type=positive_int, help="CPU threads of torch and onnxruntime; default theirs"
    )
    export.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    export.add_argument("--out", metavar="JSON", help="file for the result; the table goes beside it, as .md")
    export.add_argument("--json", action="store_true", help="print JSON")
    for kind in (model, data):
        kind.add_argument("config", metavar="CONFIG", help="config file, short name or run folder")
    for kind in (model, data, balance):
        kind.add_argument("--json", action="store_true", help="print JSON")
        add_data_root(kind)
        add_overrides(kind)


def _add_comm_options(comm: argparse.ArgumentParser) -> None:
    comm.add_argument("--tasks", type=positive_int, default=4, help="T (default 4)")
    comm.add_argument(
        "--parameters",
        type=amounts,
        default="43.9M,1B",
        metavar="P,P",
        help="trainable parameters; k, M and B are 10^3, 10^6 and 10^9 (default 43.9M,1B)",
    )
    comm.add_argument(
        "--ranks", type=amounts, default="8,64,512,4096", metavar="N,N", help="default 8,64,512,4096"
    )
    comm.add_argument("--method", metavar="NAME", help="only the modes of this balancing method, and plain")
    comm.add_argument(
        "--bandwidth",
        type=positive_float,
        metavar="GB/S",
        help="of a link of the ring, one way; default a DGX A100's: 300 up to 8 ranks, else 200",
    )
    comm.add_argument(
        "--latency", type=number_from_zero, default=5.0, metavar="US", help="microseconds per hop (default 5)"
    )
    comm.add_argument("--sketch-size", type=positive_int, default=65_536, help="k (default 65536)")
    comm.add_argument(
        "--tensors", type=positive_int, default=500, help="tensors of the parameters (default 500)"
    )
    comm.add_argument(
        "--last-layer", type=amounts, default="66304", metavar="L", help="its parameters (default 66304)"
    )
    comm.add_argument(
        "--features",
        type=amounts,
        default="5.76M",
        metavar="F",
        help="numbers of a rank's shared features (default 5.76M)",
    )
    comm.add_argument(
        "--parameter-bytes",
        type=int,
        choices=(2, 4, 8),
        default=4,
        help="of a parameter's number; task gradients have 4 at least (default 4)",
    )
    comm.add_argument(
        "--bucket-mb", type=positive_float, default=25.0, help="optim_wrapper.bucket_mb (default 25)"
    )
    comm.add_argument(
        "--zero-stage", type=int, choices=(0, 1, 2, 3), default=0, help="DeepSpeed's; 0 (default) is DDP"
    )
    comm.add_argument(
        "--max-live-parameters",
        type=amounts,
        default="1B",
        metavar="L",
        help="weights gathered at once at most, under stage 3 (default 1B)",
    )
    comm.add_argument("--out", metavar="JSON", help="file for the result")
    comm.add_argument("--json", action="store_true", help="print JSON")


def run_model(args: argparse.Namespace) -> int:
    """Measure a model."""
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for devices
    loader = "train_dataloader" if args.mode == "train" else "test_dataloader"
    if args.data_root is not None:
        from perception.config import fit_to_root

        fitting = fit_to_root(load_changed(args.config, args), loader)
        args.overrides = [*args.overrides, *fitting]
        if fitting:
            print(
                f"perception: {args.data_root} holds another version: --set {' '.join(fitting)}",
                file=sys.stderr,
            )
    cfg = load_checked(args.config, args, loaders=(loader,))
    import torch

    from perception.engine.model_benchmark import benchmark_model
    from perception.engine.step_table import step_page
    from perception.utils import write_bytes_atomic, write_json_atomic

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = benchmark_model(
        cfg,
        mode=args.mode,
        batch_size=args.batch_size,
        num_steps=args.steps,
        num_warmup=args.warmup,
        device=args.device,
    )
    result["config"] = args.config
    result["command"] = shlex.join(["perception", *sys.argv[1:]])
    page = step_page(result)
    if args.out is not None:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(args.out, result)
        write_bytes_atomic(Path(args.out).with_suffix(".md"), page.encode("utf-8"))
    if args.json:
        print_json(result)
    else:
        print(page, end="")
    return exit_codes.OK


def run_data(args: argparse.Namespace) -> int:
    """Measure a data set."""
    loader = f"{args.split}_dataloader"
    cfg = load_checked(args.config, args, loaders=(loader,))
    if args.loading:
        return _compare_loading(cfg[loader]["dataset"], args)
    from perception.engine.benchmark import benchmark_data

    return _print(benchmark_data(cfg[loader]["dataset"], num_items=args.items), args)


def _compare_loading(dataset: Any, args: argparse.Namespace) -> int:
    from perception.engine.loading_benchmark import benchmark_loading, loading_table

    result = benchmark_loading(dataset, num_items=args.items)
    if args.json:
        print_json(result)
    else:
        print(loading_table(result), end="")
    return exit_codes.OK


def run_balance(args: argparse.Namespace) -> int:
    """Measure balancing methods."""
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    workload = _workload(args, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    from perception.engine.balance_benchmark import balance_table, benchmark_balance

    methods = None if args.methods is None else [name for name in args.methods.split(",") if name]
    result = benchmark_balance(workload, methods=methods, num_steps=args.steps)
    _hand_out(result, args, balance_table)
    return exit_codes.RUN_FAILED if result["failed"] else exit_codes.OK


def run_comm(args: argparse.Namespace) -> int:
    """Reckon exchanges."""
    from perception.config import ConfigError
    from perception.engine.comm_cost import comm_table, reckon_comm

    for name in ("last_layer", "features", "max_live_parameters"):
        if len(getattr(args, name)) != 1:
            raise ConfigError(f"--{name.replace('_', '-')} takes one number, got {getattr(args, name)}")
    try:
        result = reckon_comm(
            num_ranks=args.ranks,
            num_parameters=args.parameters,
            method=args.method,
            bandwidth=None if args.bandwidth is None else 1e9 * args.bandwidth,
            latency=1e-6 * args.latency,
            num_tasks=args.tasks,
            num_tensors=args.tensors,
            num_bytes=args.parameter_bytes,
            sketch_size=args.sketch_size,
            num_last_layer=args.last_layer[0],
            num_features=args.features[0],
            bucket_mb=args.bucket_mb,
            zero_stage=args.zero_stage,
            max_live_parameters=args.max_live_parameters[0],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _hand_out(result, args, comm_table)
    return exit_codes.OK


def run_export(args: argparse.Namespace) -> int:
    """Measure exports."""
    from perception.cli.export import require_export_extra

    require_export_extra()
    from perception.export.benchmark import benchmark_export, export_table
    from perception.utils import write_bytes_atomic

    results = [
        benchmark_export(
            folder, num_rounds=args.rounds, num_threads=args.threads, with_compile=not args.no_compile
        )
        for folder in args.folders
    ]
    _hand_out({"exports": results}, args, lambda result: export_table(result["exports"]))
    if args.out is not None:
        write_bytes_atomic(Path(args.out).with_suffix(".md"), export_table(results).encode("utf-8"))
    return exit_codes.OK


def _hand_out(
    result: dict[str, Any], args: argparse.Namespace, table: Callable[[dict[str, Any]], str]
) -> None:
    """Write the result where ``--out`` says, with the command that made it; print it as ``--json`` says."""
    from perception.utils import write_json_atomic

    result["command"] = shlex.join(["perception", *sys.argv[1:]])
    if args.out is not None:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(args.out, result)
    if args.json:
        print_json(result)
    else:
        print(table(result), end="")


def _workload(args: argparse.Namespace, device: str) -> Any:
    from perception.config import ConfigError

    if args.config != RESNET18:
        if args.image_size is not None:
            raise ConfigError(
                f"--image-size is for {RESNET18}; a config's images have the size of its pipeline"
            )
        cfg = load_checked(args.config, args, loaders=("train_dataloader",))
        from perception.engine.balance_workloads import config_workload

        loader = cfg.train_dataloader
        batch_size = args.batch_size or loader["batch_size"]
        return config_workload(
            args.config, cfg.model, loader["dataset"], batch_size=batch_size, device=device
        )
    if args.overrides or args.data_root is not None:
        raise ConfigError(
            f"--set and --data-root are for configs; {RESNET18} takes --batch-size and --image-size"
        )
    from perception.engine.balance_workloads import resnet18_workload

    return resnet18_workload(
        batch_size=args.batch_size or 2, image_size=args.image_size or 128, device=device
    )


def _print(result: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        print_json(result)
    else:
        for name, value in result.items():
            print(f"{name:20s} {value:.3f}" if isinstance(value, float) else f"{name:20s} {value}")
    return exit_codes.OK
