"""What the command line calls for an exported model: evaluate and predict, by the data sets and metrics of training."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader

from perception.engine.evaluation_parts import (
    evaluation_parts,
    write_sample_scores,
    writing_evaluator,
    writing_loader,
)
from perception.engine.exported_model import ExportedModel, raw_dataset
from perception.engine.run_folder import to_plain
from perception.engine.scene_sampler import SceneSampler
from perception.registry import DATASETS, METRICS
from perception.utils import get_logger, show_progress, write_json_atomic

logger = get_logger("engine")


def evaluate_export(
    cfg: Config,
    folder: str | Path,
    *,
    variant: str = "fp32",
    subset: int | None = None,
    submission: str | Path | None = None,
    full_images: bool = False,
    num_threads: int | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Score an exported model on the test loader's data, as `evaluate` scores a checkpoint.

    The images that go into the graph are those of the data set before it resizes them; resizing is the graph's work.

    Args:
        cfg: config that the model was trained with; not changed.
        folder: the export folder.
        variant: "fp32", "fp16" or "int8".
        subset: this many samples from the beginning only; the numbers are not comparable.
        submission: only write the predictions into this folder, in the data set's submission format.
        full_images: decode images in full, as a vehicle does, where training decodes them at a fraction.
        num_threads: of onnxruntime.
        out: folder of `metrics_<variant>.json` and `metrics_<variant>_per_sample.json`; None takes the export folder.

    Raises:
        ConfigError: the pipeline has a step that an exported graph does not do, or a metric does not fit the data.
        DataError: data is missing or defective.
        ModelError: the export folder is damaged.
    """
    start = time.perf_counter()
    model = ExportedModel(folder, variant=variant, num_threads=num_threads)
    loader, evaluator = evaluation_parts(cfg)
    if submission is not None:
        loader, evaluator = writing_loader(loader), writing_evaluator(evaluator, submission)
    is_rig = model.manifest.kind == "bevformer"
    settings = raw_dataset(loader["dataset"], is_rig=is_rig, full_images=full_images)
    if subset is not None:
        settings["indices"] = subset
        logger.warning("only %d samples are evaluated: these numbers are not comparable", subset)
    dataset = DATASETS.build(settings)
    metrics = [
        METRICS.build(metric) for metric in (evaluator if isinstance(evaluator, list) else [evaluator])
    ]
    scores = Evaluator(metrics)
    scores.dataset_meta = dataset.metainfo
    for metric in metrics:
        metric.is_subset |= subset is not None
        metric.keeps_sample_scores = subset is None and submission is None
        metric.check_dataset(dataset.metainfo)
    batches = DataLoader(
        dataset,
        sampler=SceneSampler(dataset, rank=0, world_size=1),
        num_workers=loader.get("num_workers", 0),
        collate_fn=pseudo_collate,
    )
    for batch in show_progress(batches, f"{model.manifest.name} {variant}"):
        scores.process(data_samples=model.test_step(batch), data_batch=batch)
    found = to_plain(scores.evaluate(len(dataset)))
    if submission is None:
        details = {
            "model": str(folder),
            "variant": variant,
            "full_images": full_images,
            "subset": subset,
            "seconds": time.perf_counter() - start,
        }
        name = f"metrics_{variant}.json" if subset is None else f"metrics_{variant}_subset.json"
        target = Path(out or folder)
        target.mkdir(parents=True, exist_ok=True)
        write_json_atomic(target / name, {**found, **details})
        if subset is None:
            write_sample_scores(target / f"metrics_{variant}_per_sample.json", metrics, folder)
    return found


def predict_export(
    folder: str | Path, dataset: Any, indices: Sequence[int], *, variant: str = "fp32"
) -> Iterator[Any]:
    """Data samples with predictions, in the given order.

    Args:
        folder: the export folder.
        dataset: a data set of a config that `raw_dataset` made.
        indices: items, those of a scene in the order of time.
        variant: "fp32", "fp16" or "int8".

    Raises:
        ModelError: the export folder is damaged.
    """
    model = ExportedModel(folder, variant=variant)
    for index in indices:
        yield from model.test_step(pseudo_collate([dataset[index]]))
