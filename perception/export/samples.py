"""Real samples of a config's data sets as inputs of an exported graph, frame after frame.

Legend: B streams beside each other, N cameras, (H, W) an image as decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from mmengine.config import Config

from perception.config import ConfigError
from perception.datasets import ImageSteps, raw_pipeline
from perception.registry import DATASETS

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """Inputs of one pass, without `prev_bev`, and the samples' names."""

    inputs: Arrays
    tokens: tuple[str, ...]


class Samples:
    """A data set read as streams.

    Args:
        cfg: the config.
        split: whose samples: the validation's (or the test loader's), or the training's without its augmentations.

    Raises:
        ConfigError: there is no such data set, or its pipeline can't be part of a graph.
        DataError: its index is missing or damaged.
    """

    def __init__(self, cfg: Config, split: Literal["val", "train"] = "val") -> None:
        loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
        if loader is None or (split == "train" and cfg.get("train_dataloader") is None):
            raise ConfigError(f"the config has no data set to take {split} samples from, which export needs.")
        config: dict[str, Any] = dict(loader["dataset"])
        if split == "train":
            trained = cfg.train_dataloader["dataset"]
            config |= {key: trained[key] for key in ("ann_file", "data_root") if key in trained}
        config, steps = raw_pipeline(config)
        self.steps: ImageSteps = steps
        self.dataset = DATASETS.build(config)
        self.dataset.full_init()

    @property
    def metainfo(self) -> Mapping[str, Any]:
        """The data set's."""
        return self.dataset.metainfo

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of the first sample's images as decoded, and what the pipeline resizes them to."""
        item = self.dataset[0]
        height, width = item["inputs"]["img"].shape[-2:]
        original = item["data_samples"].metainfo.get("ori_shape", (height, width))
        return (width, height), self.steps.resized((original[1], original[0]))

    def stream(self, num_steps: int, batch: int = 1) -> Iterator[Step]:
        """Frames in the order of time, `batch` scenes beside each other; from the start again where they end.

        Args:
            num_steps: how many passes.
            batch: B.
        """
        starts = self._starts(batch)
        last: list[str] = [""] * batch
        for step in range(num_steps):
            items = [self.dataset[(start + step) % len(self.dataset)] for start in starts]
            metas = [item["data_samples"].metainfo for item in items]
            tokens = tuple(meta["sample_token"] for meta in metas)
            inputs = {"images": np.stack([_rgb(item["inputs"]["img"].numpy()) for item in items])}
            if "lidar2img" in items[0]["inputs"]:
                for name in ("lidar2img", "ego_motion"):
                    inputs[name] = np.stack([item["inputs"][name][-1].numpy() for item in items])
                follows = [
                    meta["prev_token"] == before != "" for meta, before in zip(metas, last, strict=True)
                ]
                inputs["use_prev_bev"] = np.array(follows, np.float32)
            last = list(tokens)
            yield Step(inputs, tokens)

    def _starts(self, batch: int) -> list[int]:
        scenes: Sequence[str] = self.dataset.scene_tokens
        firsts = [number for number, scene in enumerate(scenes) if number == 0 or scene != scenes[number - 1]]
        return [firsts[row % len(firsts)] for row in range(batch)]


def _rgb(images: np.ndarray) -> np.ndarray:
    """((1, N,) 3, H, W) BGR → ((N,) H, W, 3) RGB."""
    images = images[0] if images.ndim == 5 else images
    return np.ascontiguousarray(np.moveaxis(images[..., ::-1, :, :], -3, -1))
