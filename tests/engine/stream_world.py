"""The small world of the real model, on streams: three scenes of four, three and five frames."""

from typing import Any

import bev_world
import torch
from mmengine.config import Config

from perception.engine import StreamSampler
from tests.models.streams import frame

FRAMES = [(scene, number) for scene, length in (("a", 4), ("b", 3), ("c", 5)) for number in range(length)]


class StreamDataset(bev_world.BevDataset):
    """Frames of scenes; those in `bad` have a motion that is not finite."""

    is_streamed = True

    def __init__(self, *, bad: Any = ()) -> None:
        self.bad = [tuple(place) for place in bad]
        super().__init__(num_samples=len(FRAMES))

    def scene_tokens(self) -> list[str]:
        return [scene for scene, _ in FRAMES]

    def read_streamed(self, idx: int, *, previous: int | None, visit: int) -> dict:
        assert previous in (None, idx - 1)
        item = frame(*FRAMES[idx], starts=previous is None)
        if FRAMES[idx] in self.bad:
            item["inputs"]["ego_motion"] = item["inputs"]["ego_motion"] * torch.nan
        return item


def config(work_dir: str, **changes: Any) -> Config:
    """Two streams, five steps; a key with '__' reaches into nested dicts."""
    own: dict[str, Any] = dict(
        train_dataloader__dataset=dict(type=StreamDataset),
        train_dataloader__sampler=dict(type=StreamSampler, max_frames=3),
        train_dataloader__batch_size=2,
        train_cfg=dict(by_epoch=False, max_iters=5, val_interval=0),
    )
    return bev_world.config(work_dir, **{**own, **changes})
