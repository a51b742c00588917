"""A process of its own for the toy world: runs jobs from the command line, one after the other, on one or more ranks.

    python toy_driver.py '[{"job": "train", "work_dir": "...", "resume": false, "changes": {...}}, ...]'

Jobs share the process because starting one costs seconds.
"""

import faulthandler
import json
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import bev_world
import grouped_world
import image_world
import stream_world
import torch
import torch.distributed as dist
import toy_world

from perception.engine import PerceptionRunner, TrainLoop, collectives
from perception.engine.balance_benchmark import peak_mib
from perception.engine.comm_counter import count_collectives, socket_bytes_sent
from perception.engine.row_exchange import RowExchange
from perception.engine.sharded_weights import ShardedWeights

WORLDS = {"toy": toy_world.config, "bev": bev_world.config, "grouped": grouped_world.config}
WORLDS |= {"streams": stream_world.config, "images": image_world.config}


def train(
    work_dir: str, *, world: str = "toy", resume: bool = False, stop_after: int | None = None, **changes: Any
) -> None:
    """Train; what each rank holds at the end goes to `<work_dir>.statistics<rank>` and `<work_dir>.end<rank>`."""
    runner = PerceptionRunner.from_cfg(WORLDS[world](work_dir, resume=resume, **changes))
    runner.train(stop_after=stop_after)
    statistics = bev_world.running_statistics(runner.bare_model.state_dict())
    torch.save(statistics, f"{work_dir}.statistics{runner.rank}")
    end = {
        "weights": {name: p.detach() for name, p in runner.bare_model.named_parameters()},
        "loss_scaler": runner.optim_wrapper.state_dict()["balancing"]["loss_scaler"],
    }
    torch.save(end, f"{work_dir}.end{runner.rank}")


def signal_at(work_dir: str, *, step: int, rank: int, number: int, **changes: Any) -> None:
    """Train; one rank gets a signal while it is in the middle of a step. Every rank must leave with 143."""
    runner = PerceptionRunner.from_cfg(toy_world.config(work_dir, **changes))
    real_begin = toy_world.BalancedOptimWrapper.begin_step

    def begin(self: Any, context: Any) -> None:
        if context.step == step and runner.rank == rank:
            os.kill(os.getpid(), number)
        real_begin(self, context)

    toy_world.BalancedOptimWrapper.begin_step = begin
    try:
        runner.train()
    except SystemExit as stop:
        Path(f"{work_dir}.exit{runner.rank}").write_text(f"{stop.code} {runner.iter}")
    finally:
        toy_world.BalancedOptimWrapper.begin_step = real_begin


def evaluate(work_dir: str, *, out: str, **changes: Any) -> None:
    """The metrics of untrained weights, and which samples this rank saw."""
    from perception.engine import evaluate as evaluate_run

    seen: list[str] = []
    real_step = toy_world.ToyModel.val_step

    def step(self: Any, data: Any) -> Any:
        seen.extend(sample.sample_token for sample in data["data_samples"])
        return real_step(self, data)

    toy_world.ToyModel.test_step = step
    metrics = evaluate_run(toy_world.config(work_dir, **changes), untrained=True)
    Path(f"{out}.{collectives.rank()}").write_text(json.dumps({"metrics": metrics, "seen": seen}))


def score(work_dir: str, *, out: str, overrides: list[str]) -> None:
    """The metrics of the untrained nano model on the test split that the overrides name."""
    from perception.config import load_config
    from perception.engine import evaluate as evaluate_run

    cfg = load_config("bevformer_nano", [*overrides, f"test_evaluator.0.out_dir={out}.boxes"])
    cfg.work_dir = work_dir
    metrics = evaluate_run(cfg, untrained=True)  # the rank is known only afterwards
    Path(f"{out}.{collectives.rank()}").write_text(json.dumps(metrics))


def gradients(work_dir: str, *, out: str, world: str = "toy", **changes: Any) -> None:
    """One SGD step with learning rate 1 from fixed weights; the weights afterwards."""
    if world == "bev":
        changes = {**bev_world.DETECTION_STEP, **changes}
    runner = PerceptionRunner.from_cfg(WORLDS[world](work_dir, **changes))
    runner.train(stop_after=1)
    if runner.rank == 0:
        torch.save(runner.strategy.model_state_dict(), out)


def image_step(work_dir: str, *, out: str, case: str, batch_size: int = 1) -> None:
    """One SGD step of the image model in a case of `test_image_ranks`; each rank's weights afterwards."""
    from tests.engine.test_image_ranks import CASES, changes

    cfg = image_world.config(work_dir, **changes(CASES[case]), train_dataloader__batch_size=batch_size)
    runner = PerceptionRunner.from_cfg(cfg)
    runner.train(stop_after=1)
    torch.save({name: p.detach() for name, p in runner.bare_model.named_parameters()}, f"{out}.{runner.rank}")


def refuse(work_dir: str, *, out: str, **changes: Any) -> None:
    """One step; what this rank says against it."""
    runner = PerceptionRunner.from_cfg(toy_world.config(work_dir, **changes))
    message = ""
    try:
        runner.train(stop_after=1)
    except ValueError as error:
        message = str(error)
    Path(f"{out}.{runner.rank}").write_text(message)


def exchange(columns: int, *, out: str) -> None:
    """Two rows under way at once, in small buckets: this rank's of the second, its part of the sum, and the whole."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rows = torch.randn(2, columns, generator=torch.Generator().manual_seed(collectives.rank()))
    exchange = RowExchange(columns, dtype=torch.float32, bucket_mb=300 * 4 / 2**20)
    waits = [exchange.start(row) for row in rows]
    parts = [wait() for wait in waits]
    found = {"row": rows[1], "owned": exchange.owned, "part": parts[1], "whole": exchange.gather(parts[1])}
    torch.save(found, f"{out}.{collectives.rank()}")


def methods(names: list[str], *, precision: str, way: str, out: str) -> None:
    """Ten updates by each method; the main rank writes the weights."""
    from tests.engine.rank_methods import all_weights

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    weights = all_weights(names, precision, way)
    if collectives.rank() == 0:
        torch.save(weights, out)


def count(
    work_dir: str, *, out: str, model: str = "", world: str = "toy", has_peak: bool = False, **changes: Any
) -> None:
    """The collectives of a run's second step, what its sockets sent in it; with `has_peak` the first step's memory."""
    found: dict[str, Any] = {}
    real_step = TrainLoop._run_step

    def step(self: Any, data_batch: Any) -> None:
        if self.iter == 0 and has_peak:
            found["peak_mib"] = peak_mib(lambda: real_step(self, data_batch), torch.device("cpu"))
            return
        if self.iter != 1:
            real_step(self, data_batch)
            return
        dist.barrier()
        before = socket_bytes_sent()
        with count_collectives() as counter:
            real_step(self, data_batch)
        dist.barrier()  # everything is on its way
        after = socket_bytes_sent()
        found["calls"] = counter.calls
        found["sockets"] = None if before is None or after is None else after - before

    TrainLoop._run_step = step
    try:
        if model:
            changes["model__type"] = getattr(toy_world, model)
        PerceptionRunner.from_cfg(WORLDS[world](work_dir, **changes)).train(stop_after=3)
    finally:
        TrainLoop._run_step = real_step
    Path(f"{out}.{collectives.rank()}").write_text(json.dumps(found))


def bench_ranks(*, out: str) -> None:
    """The benchmark of ranks, and one gradient step by DDP and by our sum from the same weights."""
    from perception.engine.balance_variants import WrapperStep, make_wrapper
    from perception.engine.balance_workloads import resnet18_workload
    from perception.engine.rank_benchmark import _DDPStep, benchmark_ranks

    if not dist.is_initialized():
        dist.init_process_group("gloo")

    def make() -> Any:
        return resnet18_workload(image_size=32)

    Path(f"{out}.{collectives.rank()}").write_text(json.dumps(benchmark_ranks(make, num_steps=1)))
    updates = {}
    for name in ("ddp", "sum"):
        workload = make()
        before = torch.cat([p.detach().flatten() for p in workload.parameters])
        optimizer = torch.optim.SGD(workload.parameters, lr=1.0)
        if name == "ddp":
            _DDPStep(workload, optimizer, has_unused=False)()
        else:
            WrapperStep(workload, make_wrapper(workload, optimizer, "sum"))()
        updates[name] = torch.cat([p.detach().flatten() for p in workload.parameters]) - before
    if collectives.rank() == 0:
        torch.save(updates, f"{out}.updates.pt")


def shard(kind: str, *, options: dict[str, Any], stage: int, out: str) -> None:
    """Six updates by torch's optimiser, and by a sharded one that is saved and built anew after three."""
    from torch import nn

    from perception.engine.deepspeed_strategy import shard_optimizer

    def build() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(2, 1))
        model[0].bias.requires_grad_(False)
        groups = [
            {"params": [p], "lr": 0.2 if name == "0.weight" else 0.1} for name, p in model.named_parameters()
        ]
        return model, getattr(torch.optim, kind)(groups, **options)

    def build_sharded() -> tuple[nn.Module, Any]:
        model, optimizer = build()
        return model, shard_optimizer(optimizer, model, zero_stage=stage, weights=weights.pop())

    def advance(model: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for name, p in model.named_parameters():
                # One is frozen, two never have a gradient, one has none in every other update.
                is_idle = name.startswith("2") or (kind == "SGD" and name == "1.bias" and step % 2 == 0)
                grad = torch.randn(p.shape, generator=generator)
                p.grad = grad if p.requires_grad and not is_idle else None
            optimizer.param_groups[0]["lr"] = 0.2 / (step + 1)
            optimizer.step()
            optimizer.zero_grad()

    plain, reference = build()
    advance(plain, reference, range(6))
    weights = [ShardedWeights(max_live_parameters=20) for _ in range(2)]
    with weights[1] if stage == 3 else nullcontext():
        first, optimizer = build_sharded()
        advance(first, optimizer, range(3))
        state = optimizer.state_dict()
    if collectives.rank() == 0:
        torch.save(state, f"{out}.middle")
    dist.barrier()
    with weights[0] if stage == 3 else nullcontext():
        model, optimizer = build_sharded()
        model.load_state_dict(first.state_dict())
        optimizer.load_state_dict(torch.load(f"{out}.middle", weights_only=True))
        advance(model, optimizer, range(3, 6))
    found = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    wanted = {"weights": plain.state_dict(), "optimizer": reference.state_dict()}
    torch.save({"found": found, "wanted": wanted}, f"{out}.{collectives.rank()}")


def check_changed_deepspeed(*, stage: int, out: str) -> None:
    """What the check at the start says of a DeepSpeed that does something else with gradients."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from perception.engine.deepspeed_strategy import check_deepspeed, shard_optimizer

    kind = DeepSpeedZeroOptimizer_Stage3 if stage == 3 else DeepSpeedZeroOptimizer
    parts = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    real = kind._optimizer_step

    def shifted(self: Any, number: int) -> None:
        getattr(self, parts)[number].grad += 1e-3
        real(self, number)

    kind._optimizer_step = shifted
    message = ""
    try:
        check_deepspeed(partial(shard_optimizer, zero_stage=stage))
    except RuntimeError as error:
        message = str(error)
    finally:
        kind._optimizer_step = real
    Path(f"{out}.{collectives.rank()}").write_text(message)


def main() -> None:
    jobs = {
        "refuse": refuse,
        "train": train,
        "signal": signal_at,
        "evaluate": evaluate,
        "gradients": gradients,
        "image_step": image_step,
        "score": score,
        "exchange": exchange,
        "methods": methods,
        "count": count,
        "bench_ranks": bench_ranks,
        "shard": shard,
        "changed_deepspeed": check_changed_deepspeed,
    }
    for job in json.loads(sys.argv[1]):
        jobs[job.pop("job")](**job.pop("changes", {}), **job)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(
        int(os.environ.get("TOY_LIMIT_S", "150")), exit=True
    )  # says where it hangs
    main()
