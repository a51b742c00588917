"""Labels by a trained model, on disk in BDD100K's own format: written image by image, continued where it stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from perception.checkpoint import find_checkpoint
from perception.checkpoint.names import MODEL_FILE
from perception.config import ConfigError
from perception.config.load import copy_plain
from perception.config.types import type_name
from perception.datasets.bdd100k_layout import boxes_file, masks_folder
from perception.engine.evaluation_parts import evaluation_parts
from perception.engine.run import predict
from perception.engine.run_folder import hash_config
from perception.evaluation import ImageBoxes, box_file, encode_mask
from perception.registry import DATASETS
from perception.utils import (
    DataError,
    Progress,
    get_logger,
    iter_json_lines,
    read_json,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
)

logger = get_logger("engine")

MANIFEST_FILE = "pseudo_labels.json"
HEADS = {"det": "box_head", "seg": "seg_head"}
"""Task → the key of its head in a model's config."""

PSEUDO_KEY = "pseudo_labels"
"""The data set's argument that names folders of pseudo labels."""

_PART_SUFFIX = ".part.jsonl"
_GROUND_TRUTH_STEPS = ("LoadSegMask",)


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """What of a teacher's output becomes a label.

    *Source*: MCLGS, section 4.1.2: 0.3 for object detection, 0.2 for non-maximum suppression, 0.8 for segmentation.
    The first is taken for the box's final score, the last for the probability of a pixel's likeliest class.

    Attributes:
        score: boxes with a lower score are left out, as are those less than a pixel wide or high.
        nms: boxes of a class that overlap a better one by a larger IoU are left out.
        confidence: pixels whose class is less probable are 255, ignored.

    Raises:
        ConfigError: a number outside 0…1.
    """

    score: float = 0.3
    nms: float = 0.2
    confidence: float = 0.8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"--{name} is {value}; allowed: 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model that labels images.

    Attributes:
        cfg: its config.
        weights: run folder, step folder or `.safetensors` file.
    """

    cfg: Config
    weights: str | Path

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that it has a head for."""
        return tuple(task for task, head in HEADS.items() if self.cfg.model.get(head) is not None)

    def describe(self) -> dict[str, Any]:
        """What the labels depend on: hashes of the config and of the weights' file."""
        path = find_checkpoint(self.weights)
        file = path if path.is_file() else path / MODEL_FILE
        return {
            "config_sha256": hash_config(self.cfg.to_dict()),
            "checkpoint": path.name,
            "weights_sha256": sha256_file(file),
        }

    def labelling_config(self, rules: LabelRules) -> Config:
        """The config with the rules in its heads."""
        changed = copy_plain(self.cfg._cfg_dict)
        box_head, seg_head = (changed["model"].get(head) for head in HEADS.values())
        if box_head is not None:
            # The head's own threshold is for the class alone. The score is the root of its product with centerness, so
            # no box with a higher score is lost.
            lower = min(box_head.get("score_threshold", 0.05), rules.score**2)
            box_head.update(nms_iou=rules.nms, score_threshold=lower)
        if seg_head is not None:
            seg_head["min_confidence"] = rules.confidence
        return Config(changed, format_python_code=False)


def write_pseudo_labels(
    teachers: Sequence[Teacher],
    *,
    out: str | Path,
    images: Config | None = None,
    rules: LabelRules | None = None,
) -> Path:
    """Label the training images of a config, all of them, whatever labels they have of their own.

    Killed and started again it goes on, and the files are those of a run that was not stopped. Each task's labels are
    complete when the manifest says so; the file of boxes appears then.

    Args:
        teachers: one per task, or one for both.
        out: folder; gets `labels/det_20/det_<split>.json`, `labels/sem_seg/masks/<split>/*.png` and
            `pseudo_labels.json`, the manifest: what the labels were made of and by.
        images: config whose `train_dataloader` names the images; None takes the first teacher's.
        rules: thresholds; by default the paper's.

    Returns:
        The folder.

    Raises:
        ConfigError: two teachers for one task, a teacher without a head, or a folder that holds labels made otherwise.
        CheckpointError: a teacher's checkpoint is damaged or does not fit.
        DataError: an image is missing or damaged.
    """
    rules = rules or LabelRules()
    root = Path(out)
    _check_tasks(teachers)
    settings = _image_settings(images or teachers[0].cfg)
    root.mkdir(parents=True, exist_ok=True)
    for teacher in teachers:
        dataset = DATASETS.build({**settings, "pipeline": _labelling_pipeline(teacher.cfg)})
        split = str(dataset.metainfo.get("split", "train"))
        names = list(dataset.sample_tokens)
        source = {
            **teacher.describe(),
            "images_sha256": hashlib.sha256("\n".join(names).encode("utf-8")).hexdigest(),
            "num_images": len(names),
            "rules": asdict(rules),
        }
        writers = [_WRITERS[task](root, split, names) for task in teacher.tasks]
        _claim(root, teacher.tasks, source)
        left = sorted(set().union(*(writer.left() for writer in writers)))
        logger.info("%s: %d of %d images are to be labelled", "+".join(teacher.tasks), len(left), len(names))
        progress = Progress(f"Labels of {'+'.join(teacher.tasks)}", total=len(left), unit="images")
        results = predict(teacher.labelling_config(rules), teacher.weights, dataset=dataset, indices=left)
        for index, result in zip(left, results if left else (), strict=True):
            for writer in writers:
                writer.write(index, result, rules)
            progress.advance()
        progress.close()
        for writer in writers:
            writer.finish()
        _claim(root, teacher.tasks, {**source, "is_complete": True})
    return root


class _BoxWriter:
    """Boxes: a line per image until all are there."""

    def __init__(self, root: Path, split: str, names: Sequence[str]) -> None:
        self.path = root / boxes_file(split)
        self.part = self.path.with_name(self.path.name + _PART_SUFFIX)
        self.names = names
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, ImageBoxes] = {}
        if self.part.is_file():
            lines = list(iter_json_lines(self.part))
            self.found = {line["name"]: _boxes_of(line) for line in lines}
            # Without what a kill has cut off, which the next line would be joined to.
            write_bytes_atomic(self.part, (_line(line) for line in lines))

    def left(self) -> set[int]:
        """Positions without a result."""
        if self.path.is_file():
            return set()
        return {index for index, name in enumerate(self.names) if name not in self.found}

    def write(self, index: int, result: Any, rules: LabelRules) -> None:
        name = self.names[index]
        if self.path.is_file() or name in self.found:
            return
        predicted = result.pred_instances
        scores = predicted.scores.cpu().double().numpy()
        boxes = predicted.bboxes.cpu().double().numpy()
        # Less than a pixel wide or high would read as a box that ends before it begins: its last pixel is inside.
        kept = (scores >= rules.score) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        line = {
            "name": name,
            "boxes": boxes[kept].tolist(),
            "scores": scores[kept].tolist(),
            "labels": predicted.labels.cpu().numpy()[kept].tolist(),
        }
        self.found[name] = _boxes_of(line)
        with open(self.part, "ab") as file:
            file.write(_line(line))

    def finish(self) -> None:
        if not self.path.is_file():
            ordered = {name: self.found[name] for name in self.names}
            write_bytes_atomic(self.path, box_file(ordered))
        self.part.unlink(missing_ok=True)


class _MaskWriter:
    """Masks: a file per image."""

    def __init__(self, root: Path, split: str, names: Sequence[str]) -> None:
        self.folder = root / masks_folder(split)
        self.folder.mkdir(parents=True, exist_ok=True)
        stems: dict[str, str] = {}
        for name in names:
            other = stems.setdefault(Path(name).stem, name)
            if other != name:
                raise DataError(f"the images {other} and {name} would have one mask", path=self.folder)
        self.paths = [self.folder / f"{Path(name).stem}.png" for name in names]

    def left(self) -> set[int]:
        """Positions without a result."""
        found = {path.name for path in self.folder.glob("*.png")}
        return {index for index, path in enumerate(self.paths) if path.name not in found}

    def write(self, index: int, result: Any, rules: LabelRules) -> None:
        del rules
        if not self.paths[index].is_file():
            mask = result.pred_sem_seg.sem_seg[0].cpu().numpy().astype(np.uint8)
            write_bytes_atomic(self.paths[index], encode_mask(mask))

    def finish(self) -> None:
        pass


_WRITERS: dict[str, Any] = {"det": _BoxWriter, "seg": _MaskWriter}


def _claim(root: Path, tasks: Sequence[str], source: Mapping[str, Any]) -> None:
    """Note in the manifest what a task's labels are made of.

    Raises:
        ConfigError: the folder holds labels that were made otherwise.
    """
    path = root / MANIFEST_FILE
    manifest = read_json(path) if path.is_file() else {"tasks": {}}
    for task in tasks:
        before = manifest["tasks"].get(task)
        differing = [
            key for key, value in source.items() if before and key in before and before[key] != value
        ]
        if differing:
            raise ConfigError(
                f"{path} says that the labels of {task!r} in this folder were made otherwise: {', '.join(differing)} "
                "differ. Choose another --out, or remove the folder"
            )
        manifest["tasks"][task] = {**(before or {}), **source}
    manifest["tasks"] = dict(sorted(manifest["tasks"].items()))
    write_json_atomic(path, manifest)


def _check_tasks(teachers: Sequence[Teacher]) -> None:
    taken: dict[str, Teacher] = {}
    for teacher in teachers:
        if not teacher.tasks:
            raise ConfigError(
                f"the model of {teacher.weights} has neither {' nor '.join(HEADS.values())}; pseudo labels are made "
                "by FCOSMultiTask"
            )
        for task in teacher.tasks:
            if task in taken:
                raise ConfigError(
                    f"{taken[task].weights} and {teacher.weights} both have the task {task!r}; give one teacher per "
                    "task"
                )
            taken[task] = teacher


def _image_settings(cfg: Config) -> dict[str, Any]:
    """The training set's config, for prediction: all its images, none of its labels' own."""
    loader = cfg.get("train_dataloader")
    if loader is None:
        raise ConfigError("the config has no train_dataloader, whose images are to be labelled")
    settings = {key: value for key, value in loader["dataset"].items() if key != PSEUDO_KEY}
    return {**settings, "test_mode": True, "indices": None}


def _labelling_pipeline(cfg: Config) -> list[Any]:
    """The teacher's pipeline of evaluation, without what reads the ground truth."""
    steps = evaluation_parts(cfg)[0]["dataset"]["pipeline"]
    return [step for step in steps if type_name(step["type"]).rpartition(".")[2] not in _GROUND_TRUTH_STEPS]


def _boxes_of(line: Mapping[str, Any]) -> ImageBoxes:
    return ImageBoxes(
        boxes=np.array(line["boxes"], dtype=np.float64).reshape(-1, 4),
        scores=np.array(line["scores"], dtype=np.float64),
        labels=np.array(line["labels"], dtype=np.int64),
    )


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
