"""The shipped streaming config on rendered images: exact resume under random flips, and its oracle, a whole queue."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import toy_world
from mmengine.dataset import pseudo_collate

from perception.checkpoint import load_checkpoint
from perception.config import load_config
from perception.engine import PerceptionRunner, StreamSampler
from perception.engine.data_loading import build_dataloader
from perception.registry import DATASETS, MODELS

pytestmark = pytest.mark.slow


def config(options: Sequence[str], *more: str) -> object:
    return load_config("bevformer_nano_stream", [*options, "train_cfg.val_interval=0", *more])


def test_resume(tmp_path: Path, nano_options: list[str]) -> None:
    """Four frames as one stream in parts of two, for two epochs; stops inside a part and at a part's end."""
    more = [
        "train_dataloader.batch_size=1",
        "train_dataloader.sampler.max_frames=2",
        "train_cfg.max_epochs=2",
    ]
    seen = []
    for name, stops in (("whole", (None,)), ("parts", (1, 4, None))):
        for part, stop in enumerate(stops):
            cfg = config(nano_options, *more)
            cfg.work_dir, cfg.resume = str(tmp_path / name), part > 0
            PerceptionRunner.from_cfg(cfg).train(stop_after=stop)
        streams = load_checkpoint(tmp_path / name).stream_states
        seen.append({**toy_world.fingerprint(tmp_path / name), "streams": streams})
    assert len(seen[0]["log"]) == 8
    toy_world.assert_same(*seen)


def test_a_mirrored_stream_is_a_mirrored_queue(nano_options: list[str]) -> None:
    """What the model carries through a flipped scene, frame by frame, is what it makes of the flipped queue."""
    cfg = config(nano_options, "train_dataloader.batch_size=1")
    loader = cfg.train_dataloader
    (flip,) = (step for step in loader.dataset.pipeline if "prob" in step)
    flip.update(prob=1.0)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    queue = DATASETS.build({**loader.dataset, "history": "consecutive", "queue_length": 4})[3]
    assert isinstance(build_dataloader(loader, seed=0).sampler, StreamSampler)
    with torch.no_grad():
        for batch in build_dataloader(loader, seed=0):
            (sample,) = batch["data_samples"]
            assert sample.bev_aug[0, 0] == -1
            model(**model.data_preprocessor(batch, False), mode="loss")
        whole = model.compute_bev(model.data_preprocessor(pseudo_collate([queue]), False)["inputs"])
    assert sample.sample_token == queue["data_samples"].sample_token
    carried = model.stream_memory.state_dict()["groups"][0]["bev"]
    torch.testing.assert_close(carried, whole, atol=1e-4, rtol=1e-4)
