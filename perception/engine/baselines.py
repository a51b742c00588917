"""Score a predictor that looks at no image by the config's own metrics."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmengine.evaluator import Evaluator

from perception.config import ConfigError
from perception.config.types import type_name
from perception.datasets import (
    CropTopMultiView,
    LoadMultiViewImages,
    PackBEVInputs,
    PhotometricDistortion,
    ResizeMultiView,
)
from perception.engine.evaluation_parts import evaluation_parts
from perception.engine.run_folder import headline_scores, to_plain, update_summary
from perception.evaluation import GatheredMetric, baseline_predictions
from perception.registry import DATASETS
from perception.utils import write_json_atomic

_IMAGE_STEPS = {
    kind.__name__ for kind in (LoadMultiViewImages, ResizeMultiView, CropTopMultiView, PhotometricDistortion)
}


def without_images(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset config whose pipeline neither reads nor packs images; a step it does not know stays.

    Decoding is nearly all of the time that a sample takes.

    Args:
        dataset: the config; not changed.
    """
    kept = [step for step in dataset["pipeline"] if _name(step["type"]) not in _IMAGE_STEPS]
    pipeline = [
        {**step, "with_images": False} if _name(step["type"]) == PackBEVInputs.__name__ else step
        for step in kept
    ]
    return {**dataset, "pipeline": pipeline}


def _name(kind: type | str) -> str:
    return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def score_baseline(
    cfg: Config, name: Literal["constant", "ground-truth"], *, subset: int | None = None
) -> dict[str, Any]:
    """Evaluate a baseline on the test loader's data (the validation loader's, if there is no test loader).

    Writes `metrics_<name>.json` into `cfg.work_dir`, and the headline scores under the baseline's name into its
    `summary.json` (not for a subset).

    Args:
        cfg: the config.
        name: "constant" is fitted on the training split; "ground-truth" gives the truth back.
        subset: evaluate this many samples from the beginning only; the numbers are not comparable.

    Returns:
        All metrics.

    Raises:
        ConfigError: the data set is one of single images.
        ValueError: the config has nothing to evaluate on.
    """
    start = time.perf_counter()
    loader, metrics_config = evaluation_parts(cfg)
    if type_name(loader["dataset"]["type"]).endswith("BDD100KDataset"):
        raise ConfigError(
            "--baseline is for nuScenes' boxes and maps; of boxes and masks in images compare with --untrained"
        )
    settings = without_images(loader["dataset"])
    training = None
    if name == "constant":
        source = cfg.train_dataloader["dataset"]
        training = DATASETS.build(
            {**settings, "ann_file": source["ann_file"], "data_root": source["data_root"]}
        )
    dataset = DATASETS.build(settings if subset is None else {**settings, "indices": subset})
    evaluator = Evaluator(metrics_config)
    evaluator.dataset_meta = dataset.metainfo
    for metric in evaluator.metrics:
        if isinstance(metric, GatheredMetric):
            metric.check_dataset(dataset.metainfo)
        if subset is not None and hasattr(metric, "is_subset"):
            metric.is_subset = True
    for sample in baseline_predictions(name, dataset, training_dataset=training):
        evaluator.process(data_samples=[sample], data_batch=None)
    metrics = to_plain(evaluator.evaluate(len(dataset)))
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if subset is None else "_subset"
    details = {"baseline": name, "subset": subset, "comparable": subset is None}
    write_json_atomic(folder / f"metrics_{name}{suffix}.json", {**metrics, **details})
    if subset is None:
        seconds = {f"evaluate_{name}": round(time.perf_counter() - start, 2)}
        update_summary(folder, {name: headline_scores(metrics), "seconds": seconds})
    return metrics
