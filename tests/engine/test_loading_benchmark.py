"""Loading in full, reduced and from a cache, compared."""

import pytest

from perception.config import ConfigError
from perception.datasets import (
    LoadMultiViewImages,
    NuScenesBEVDataset,
    PackBEVInputs,
    ResizeMultiView,
    prepare_image_cache,
)
from perception.engine.loading_benchmark import benchmark_loading, loading_table

SIZE = (176, 99)


@pytest.fixture
def dataset(synthetic_root, nano_index) -> dict:
    return {
        "type": NuScenesBEVDataset,
        "ann_file": str(nano_index / "v1.0-mini_mini_train.json"),
        "data_root": str(synthetic_root),
        "queue_length": 2,
        "pipeline": [
            {"type": LoadMultiViewImages, "target_size": SIZE},
            {"type": ResizeMultiView, "size": SIZE},
            {"type": PackBEVInputs},
        ],
    }


def test_three_ways(dataset, synthetic_root, nano_index, tmp_path):
    folder = tmp_path / "image_cache"
    prepare_image_cache(synthetic_root, sorted(nano_index.glob("*.json")), size=SIZE, cache_dir=folder)
    dataset["pipeline"][0]["cache_dir"] = str(folder)
    result = benchmark_loading(dataset, num_items=3)
    assert list(result["ways"]) == ["full", "reduced", "cache"]
    for way in result["ways"].values():
        assert 0 < way["images_ms"] <= way["item_ms"]
        assert 0 < way["images_cpu_ms"] <= way["item_cpu_ms"]
    assert (result["images_per_item"], result["num_items"]) == (12, 3)
    assert result["no_cache"] is None
    lines = loading_table(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| full", "| reduced", "| cache"]
    assert lines[-1] == "To 176×99, 12 images an item, 3 items."


def test_without_a_cache_it_says_how_to_make_one(dataset, synthetic_root):
    result = benchmark_loading(dataset, num_items=1)
    assert list(result["ways"]) == ["full", "reduced"]
    told = loading_table(result).splitlines()[-1]
    assert f"`perception data prepare {synthetic_root} --cache 176x99`" in told


def test_pipelines_with_nothing_to_compare(dataset):
    for pipeline, message in (
        ([{"type": PackBEVInputs}], "no images to load"),
        ([{"type": LoadMultiViewImages}, {"type": ResizeMultiView, "scale": 0.5}], "no fixed size"),
    ):
        with pytest.raises(ConfigError, match=message):
            benchmark_loading({**dataset, "pipeline": pipeline})
