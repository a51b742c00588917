"""`perception train` on the toy world, for torchrun: the rank that gets sample 4 raises a DataError in its forward.

torchrun --nproc-per-node 2 failing_rank_driver.py RUN_FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perception.cli import train
from perception.cli.main import main
from perception.utils import DataError
from tests.engine import toy_world


class FailingModel(toy_world.ToyModel):
    """Raises for a sample that is marked."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        for sample in data_samples:
            if sample.bad:
                Path(sys.argv[1] + ".failed").write_text(str(time.time()))
                raise DataError("the sample is marked", sample_token=sample.sample_token)
        return super().forward(inputs, data_samples, mode)


if __name__ == "__main__":
    cfg = toy_world.config(
        sys.argv[1],
        model__type=FailingModel,
        train_dataloader__dataset={"type": toy_world.ToyDataset, "num_samples": 12, "bad": {"4": "data"}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_checked", lambda *args, **kwargs: cfg)
        sys.exit(main(["train", "bevformer_nano"]))
