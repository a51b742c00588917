"""Frames of scenes as a stream gives them, and the same frames as a queue."""

from typing import Any

import torch

from tests.models.small import make_item


def frame(scene: str, number: int, *, starts: bool | None = None, **options: Any) -> dict[str, Any]:
    """Frame `number` of a scene named by one letter; without history if it `starts`, by default the first one."""
    starts = number == 0 if starts is None else starts
    item = make_item(100 * (ord(scene) - ord("a") + 1) + number, num_frames=1, **options)
    item["inputs"]["has_prev"][:] = not starts
    before = f"{scene}{number - 1}"
    item["data_samples"].set_metainfo(
        {
            "sample_token": f"{scene}{number}",
            "prev_token": before if number else "",
            "carried_token": "" if starts else before,
            "scene_token": scene,
        }
    )
    return item


def queue(scene: str, num_frames: int) -> dict[str, Any]:
    """The scene's first frames as one item of a sliding window."""
    items = [frame(scene, number) for number in range(num_frames)]
    inputs = {key: torch.cat([item["inputs"][key] for item in items]) for key in items[0]["inputs"]}
    sample = items[-1]["data_samples"]
    del sample.carried_token
    return {"inputs": inputs, "data_samples": sample}
