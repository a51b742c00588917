"""Driver of the comparison: a process for each side, which take turns."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.engine.upstream_benchmark import worker
from perception.engine.upstream_benchmark.inputs import PARITY_FOLDER, write_inputs
from perception.ops.deformable_attention import ENVIRONMENT_VARIABLE
from perception.utils import write_json_atomic

PARTS = ("encoder", "decoder", "whole")
MODES = ("eval_forward", "train_forward", "train_forward_backward")
OURS = "ours"
# Of two right implementations; values reach some 5 in the BEV and 51 in the boxes.
LIMITS = {"bev": 1e-3, "scores": 1e-3, "codes": 1e-2}
REMEDY = """\
The official code and what it needs, in plain Python, beside this repository:
    git clone https://github.com/fundamentalvision/BEVFormer peer/BEVFormer
    git -C peer/BEVFormer checkout 66b65f3a
    git clone -b v1.4.0 https://github.com/open-mmlab/mmcv peer/mmcv
    git clone -b v0.17.1 https://github.com/open-mmlab/mmdetection3d peer/mmdetection3d
    pip install --no-deps --target peer/packages mmdet==2.14.0 torchvision
    python tools/bench_upstream.py --upstream peer/BEVFormer --deps peer/mmcv peer/mmdetection3d peer/packages
Without it: python tools/bench_upstream.py --baseline rebatching"""


class WorkerError(RuntimeError):
    """A side could not be built, or its process ended."""


class Worker:
    """A side's process.

    Args:
        name: "ours", "official" or "rebatching".
        inputs: file of `write_inputs`.
        threads: of torch.
        folders: the official repository and its dependencies, for "official".

    Raises:
        WorkerError: the side can't be built.
    """

    def __init__(self, name: str, inputs: Path, threads: int, folders: Sequence[Path] = ()) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        script = [sys.executable, worker.__file__, name, str(inputs), str(threads), *map(str, folders)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        if name == "rebatching":  # plain torch throughout
            environment[ENVIRONMENT_VARIABLE] = "reference"
        self._process = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request of `worker.serve` and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        self.close()
        raise WorkerError(f"the process of the side '{self.name}' ended: {''.join(last) or 'no message'}")


def run_upstream_benchmark(
    *,
    upstream: Path | None = None,
    deps: Sequence[Path] = (),
    with_rebatching: bool = False,
    threads: int = 2,
    rounds: int = 5,
    batches: Sequence[int] = (1, 4),
    out: Path | None = None,
    geometry: Path | None = None,
    clock: Literal["wall", "cpu"] = "wall",
    command: str = "",
) -> dict[str, Any]:
    """Measure all sides, interleaved: every round times each part, mode and batch on one side after the other.

    Args:
        upstream: the official repository; None: without it.
        deps: folders with what it needs.
        with_rebatching: measure our modules with a plain rebatching loop, too.
        threads: of every side.
        rounds: how often; one more before them is not counted.
        batches: samples at once.
        out: gets the result as JSON.
        geometry: `bench_inputs.npz`; None: the one of the parity fixtures where it is there.
        clock: "cpu" takes the processes' own CPU time; for one thread on a busy machine.
        command: goes into the result.

    Returns:
        "differences" between the sides' outputs, "rows" with medians in ms, ratios and spread, and what was measured
        where.

    Raises:
        WorkerError: a side can't be built, or the sides' outputs differ.
    """
    if geometry is None:
        found = PARITY_FOLDER / "bench" / "bench_inputs.npz"
        geometry = found if found.is_file() else None
    peers = [*(["official"] if upstream else []), *(["rebatching"] if with_rebatching else [])]
    folders = [] if upstream is None else [upstream.resolve(), *(path.resolve() for path in deps)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_inputs(folder / "inputs.npz", batch=max(batches), geometry=geometry)
        sides: dict[str, Worker] = {}
        try:
            for side in (*peers, OURS):
                own = folders if side == "official" else []
                sides[side] = Worker(side, folder / "inputs.npz", threads, own)
            differences = _compare(sides, folder, batches)
            times, failures = _time(sides, batches, rounds, clock)
            scaling = _time_batches(sides[OURS], batches, rounds, clock)
        finally:
            for process in sides.values():
                process.close()
        versions = {side: process.versions for side, process in sides.items()}
    result = {
        "command": command,
        "model": "bevformer_official_tiny: BEV 50 x 50, C 256, 3 + 6 layers, 900 queries, 6 x (15 x 25) features",
        "geometry": source,
        "threads": threads,
        "rounds": rounds,
        "clock": clock,
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": versions,
        "differences": differences,
        "failures": failures,
        "rows": _rows(times, batches),
        "scaling": scaling,
        "rounds_ms": {
            side: {"/".join(map(str, key)): ms for key, ms in of.items()} for side, of in times.items()
        },
    }
    if out is not None:
        write_json_atomic(out, result)
    return result


def _compare(sides: dict[str, Worker], folder: Path, batches: Sequence[int]) -> dict[str, dict[str, float]]:
    weights = str(folder / "weights.npz")
    sides[OURS].ask("save", file=weights)
    differences = {}
    for name, side in sides.items():
        if name == OURS:
            continue
        # The official code mixes samples beyond one: rotation, visibility and temporal offsets.
        batch = 1 if name == "official" else max(batches)
        found = []
        for process in (side, sides[OURS]):
            file = folder / f"{process.name}.npz"
            for answer in (
                process.ask("load", file=weights),
                process.ask("outputs", batch=batch, file=str(file)),
            ):
                if "error" in answer:
                    raise WorkerError(f"the side '{process.name}': {answer['error']}")
            with np.load(file, allow_pickle=False) as arrays:
                found.append({key: arrays[key] for key in arrays.files})
        theirs, ours = found
        differences[name] = {key: float(np.abs(theirs[key] - ours[key]).max()) for key in LIMITS}
        print(f"largest difference from '{name}' at batch {batch}: {differences[name]}", flush=True)
        wrong = {key: value for key, value in differences[name].items() if not value <= LIMITS[key]}
        if wrong:
            raise WorkerError(f"'{name}' and ours compute different things: {wrong}, allowed {LIMITS}")
    return differences


Times = dict[str, dict[tuple[int, str, str], list[float]]]


def _time(
    sides: dict[str, Worker], batches: Sequence[int], rounds: int, clock: str
) -> tuple[Times, dict[str, dict[str, str]]]:
    times: Times = {name: {} for name in sides}
    failures: dict[str, dict[str, str]] = {}
    names = list(sides)
    for number in range(rounds + 1):
        for batch in batches:
            for part in PARTS:
                for is_training in (False, True):
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        if str(batch) in failures.get(name, {}):
                            continue
                        answer = sides[name].ask(
                            "measure", batch=batch, part=part, is_training=is_training, clock=clock
                        )
                        if "error" in answer:
                            failures.setdefault(name, {})[str(batch)] = answer["error"]
                            continue
                        if number > 0:  # the first round warms up
                            for mode, seconds in answer.items():
                                times[name].setdefault((batch, part, mode), []).append(
                                    round(1e3 * seconds, 2)
                                )
        print(f"round {number} of {rounds}{' (warm-up)' if number == 0 else ''}", file=sys.stderr, flush=True)
    return times, failures


def _rows(times: Times, batches: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for batch in batches:
        for part in PARTS:
            for mode in MODES:
                key = (batch, part, mode)
                ours = times[OURS][key]
                row: dict[str, Any] = {"batch": batch, "part": part, "mode": mode, "ms": {}, "ratio": {}}
                for name, of_side in times.items():
                    if key not in of_side:
                        continue
                    row["ms"][name] = round(statistics.median(of_side[key]), 1)
                    if name != OURS:
                        row["ratio"][name] = _spread([a / b for a, b in zip(of_side[key], ours, strict=True)])
                rows.append(row)
    return rows


def _time_batches(ours: Worker, batches: Sequence[int], rounds: int, clock: str) -> list[dict[str, Any]]:
    """How the time of a batch compares with as many single samples; below 1 is better than linear.

    The single samples come right before or after the batch, by turns: what is measured minutes apart differs by more on
    a shared machine than what is looked for.
    """
    scaling = []
    for batch in batches:
        if batch == 1:
            continue
        for part in PARTS:
            shares: dict[str, list[float]] = {}
            for number in range(rounds + 1):
                for is_training in (False, True):
                    request = {"part": part, "is_training": is_training, "clock": clock}
                    sizes = [batch, *[1] * batch]
                    answers = [
                        (size, ours.ask("measure", batch=size, **request))
                        for size in (sizes if number % 2 else reversed(sizes))
                    ]
                    if number == 0:  # warms up
                        continue
                    for mode in answers[0][1]:
                        many = sum(answer[mode] for size, answer in answers if size == batch)
                        singles = sum(answer[mode] for size, answer in answers if size == 1)
                        shares.setdefault(mode, []).append(many / singles)
            scaling += [
                {"batch": batch, "part": part, "mode": mode, "share_of_linear": _spread(shares[mode])}
                for mode in MODES
            ]
            print(f"a batch of {batch} beside single samples: {part}", file=sys.stderr, flush=True)
    return scaling


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
