"""Sizes that the steps of an image pipeline state must fit together."""

import pytest

from perception.config import ConfigError, check_config, load_config
from perception.config.image_sizes import image_size_problems

STEP = "train_dataloader.dataset.pipeline.0"


def problems(loading: dict, resizing: dict | None) -> list[str]:
    steps = [{"type": "LoadMultiViewImages", **loading}]
    steps += [] if resizing is None else [{"type": "ResizeMultiView", **resizing}]
    return image_size_problems({"train_dataloader": {"dataset": {"pipeline": steps}}})


@pytest.mark.parametrize(
    ("loading", "resizing"),
    [
        ({}, {"size": (8, 4)}),
        ({"target_size": None}, {"size": (8, 4)}),
        ({"target_size": (8, 4)}, {"size": [8, 4]}),
        ({"target_size": (8, 4)}, {"scale": 0.5}),
        ({"target_size": (8, 4)}, None),
        ({"target_size": (8, 4), "cache_dir": "auto"}, {"size": (8, 4)}),
        ({"target_size": (8, 4), "cache_dir": "auto"}, None),
    ],
)
def test_what_fits(loading, resizing):
    assert problems(loading, resizing) == []


@pytest.mark.parametrize(
    ("loading", "resizing", "message"),
    [
        (
            {"target_size": (8, 4)},
            {"size": (16, 8)},
            f"{STEP}.target_size is 8×4, but pipeline.1 resizes to 16×8",
        ),
        ({"cache_dir": "x"}, {"size": (8, 4)}, f"{STEP}.cache_dir is 'x', but target_size"),
        (
            {"target_size": (8, 4), "cache_dir": "x"},
            {"scale": 0.5},
            f"{STEP}.cache_dir is 'x', but pipeline.1 has a scale, which is that of the originals; "
            "give it size=(8, 4) instead.",
        ),
    ],
)
def test_what_does_not_fit(loading, resizing, message):
    (problem,) = problems(loading, resizing)
    assert problem.startswith(message)


def test_the_steps_of_one_image():
    def of(loading: dict, resizing: dict) -> list[str]:
        steps = [{"type": "LoadImage2D", **loading}, {"type": "ResizeImage", **resizing}]
        return image_size_problems({"train_dataloader": {"dataset": {"pipeline": steps}}})

    edges = {"short_edges": [256, 608], "max_long_edge": 900}
    assert of({"target_size": (8, 4)}, {"size": (8, 4)}) == []
    assert of({"target_size": (1080, 608)}, edges) == []
    assert of({"target_size": (900, 500)}, edges) == []  # the long edge is the limit
    assert of({"target_size": (8, 4)}, {"size": (16, 8)})[0].startswith(f"{STEP}.target_size is 8×4, but")
    assert "short edges of up to 608" in of({"target_size": (640, 360)}, edges)[0]


def test_a_shipped_config_with_one_of_the_sizes_changed():
    with pytest.raises(
        ConfigError, match=rf"{STEP}\.target_size is 352×198, but pipeline\.1 resizes to 512×288"
    ):
        check_config(load_config("bevformer_nano", ["train_dataloader.dataset.pipeline.1.size=[512,288]"]))


def test_configs_without_pipelines():
    assert image_size_problems({}) == []
    assert image_size_problems({"train_dataloader": None, "val_dataloader": {"dataset": {"type": "X"}}}) == []
