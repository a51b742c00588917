"""`perception train` on the toy world, on each rank; some of them do something to themselves at a step.

python many_ranks_driver.py RUN_FOLDER '{"1": [5, "SIGKILL"], "0": [5, "sleep 100"]}' '{"timeout_s": 6}'
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perception.cli import train
from perception.cli.main import main
from perception.engine import DDPStrategy, PerceptionRunner
from tests.engine import toy_world

RUN, PLAN, WATCH = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
STEP, DEED = PLAN.get(os.environ["RANK"], [0, ""])


def do(deed: str) -> None:
    name, _, seconds = deed.partition(" ")
    Path(f"{RUN}.deed{os.environ['RANK']}").write_text(str(time.time()))
    if name == "sleep":
        time.sleep(float(seconds))
    else:
        os.kill(os.getpid(), signal.Signals[name])


class Model(toy_world.ToyModel):
    """Does what the plan says in the forward of a step."""

    num_steps = 0

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        if self.training:
            self.num_steps += 1
            if self.num_steps == STEP:
                do(DEED)
        return super().forward(inputs, data_samples, mode)


class Dataset(toy_world.ToyDataset):
    """Does it when it is built, if the plan says so: `"build": [rank, deed]`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        rank, deed = PLAN.get("build", ["", ""])
        if os.environ["RANK"] == str(rank):
            do(deed)


class SlowMetric(toy_world.ToyMetric):
    """Keeps the other rank waiting, if the plan says so."""

    def compute_metrics(self, results: dict[str, Any]) -> dict[str, Any]:
        if "score" in PLAN:
            do(PLAN["score"])
        return super().compute_metrics(results)


class SlowRunner(PerceptionRunner):
    """Likewise when it saves."""

    def _describe_state(self) -> dict[str, Any]:
        if self.rank == 0 and "save" in PLAN and self.iter:
            do(PLAN["save"])
        return super()._describe_state()


if __name__ == "__main__":
    cfg = toy_world.config(
        RUN,
        model__type=Model,
        train_dataloader__dataset={"type": Dataset, "num_samples": 40},
        train_dataloader__num_workers=1,
        train_dataloader__persistent_workers=True,
        train_cfg={"by_epoch": False, "max_iters": 10, "val_interval": 8},
        val_evaluator={"type": SlowMetric},
        default_hooks={"rank_watch": WATCH},
        **({"strategy": {"type": DDPStrategy, "timeout_s": PLAN["together"]}} if "together" in PLAN else {}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_checked", lambda *args, **kwargs: cfg)
        patch.setattr("perception.engine.run.PerceptionRunner", SlowRunner)
        sys.exit(main(["train", "bevformer_nano"]))
