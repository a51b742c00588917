"""Pseudo labels of teachers: what is written, that a stopped run ends in the same files, and who reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from perception.config import ConfigError
from perception.datasets import prepare_bdd100k
from perception.datasets.bdd100k_layout import boxes_file, masks_folder
from perception.engine import pseudo_labels
from perception.engine.pseudo_labels import LabelRules, Teacher, write_pseudo_labels
from perception.engine.run import predict
from perception.evaluation import list_masks, read_image_boxes, read_mask
from perception.registry import DATASETS, MODELS
from perception.structures.driving_2d import IGNORE_SEG
from tests.engine.pseudo_world import fcos_config, write_weights

RULES = LabelRules(score=0.45, nms=0.2, confidence=0.5)


@pytest.fixture(scope="module")
def index(bdd100k_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bdd100k index")
    prepare_bdd100k(bdd100k_root, out=out, progress=False)
    return out


@pytest.fixture(scope="module")
def teachers(bdd100k_root: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Teacher]:
    """One for boxes and one for masks."""
    folder = tmp_path_factory.mktemp("teachers")
    found = []
    for seed, head in enumerate(("det", "seg")):
        cfg = fcos_config(bdd100k_root, index, heads=(head,))
        weights = write_weights(cfg, folder / f"{head}.safetensors", seed=seed)
        found.append(Teacher(cfg=cfg, weights=weights))
    return found


@pytest.fixture(scope="module")
def labels(teachers: list[Teacher], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pseudo_labels(teachers, out=tmp_path_factory.mktemp("labels") / "pseudo", rules=RULES)


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_training_image_is_labelled_by_the_rules(labels: Path, teachers: list[Teacher]) -> None:
    boxes = read_image_boxes(labels / boxes_file("train"))
    masks = list_masks(labels / masks_folder("train"))
    assert len(boxes) == len(masks) == 8
    assert {Path(name).stem for name in boxes} == set(masks)
    scores = np.concatenate([found.scores for found in boxes.values()])
    assert len(scores) > 8
    assert scores.min() >= RULES.score
    for found in boxes.values():
        assert (found.boxes[:, [0, 1]] >= 0).all()
        assert (found.boxes[:, 2] <= 320).all()
    values = np.stack([read_mask(path) for path in masks.values()])
    assert values.shape[1:] == (180, 320)
    assert 0.01 < (values == IGNORE_SEG).mean() < 0.99
    manifest = json.loads((labels / "pseudo_labels.json").read_text())["tasks"]
    assert [manifest[task]["is_complete"] for task in ("det", "seg")] == [True, True]
    assert manifest["det"]["rules"] == {"score": 0.45, "nms": 0.2, "confidence": 0.5}
    assert manifest["det"]["weights_sha256"] != manifest["seg"]["weights_sha256"]
    assert not list(labels.rglob("*.part*"))


def test_masks_are_the_teachers_where_it_is_sure(labels: Path, teachers: list[Teacher]) -> None:
    teacher = teachers[1]
    settings = {**teacher.cfg.train_dataloader["dataset"], "test_mode": True}
    dataset = DATASETS.build(settings)
    model = MODELS.build(teacher.cfg.model).eval()
    (plain,) = predict(teacher.cfg, teacher.weights, dataset=dataset, indices=[3])
    (sure,) = predict(teacher.labelling_config(RULES), teacher.weights, dataset=dataset, indices=[3])
    classes, labelled = plain.pred_sem_seg.sem_seg[0], sure.pred_sem_seg.sem_seg[0]
    assert model.seg_head.min_confidence == 0.0
    is_sure = labelled != IGNORE_SEG
    assert torch.equal(labelled[is_sure], classes[is_sure])
    stem = Path(dataset.sample_tokens[3]).stem
    assert np.array_equal(read_mask(labels / masks_folder("train") / f"{stem}.png"), labelled.numpy())


def test_a_stopped_run_ends_in_the_same_files(
    labels: Path, teachers: list[Teacher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pseudo_labels.predict
    out = tmp_path / "pseudo"
    for limit in (0, 3, 5, 2):  # images of one teacher until the stop

        def stopped(*args: Any, limit: int = limit, **options: Any) -> Any:
            for number, result in enumerate(real(*args, **options)):
                if number == limit:
                    raise KeyboardInterrupt
                yield result

        monkeypatch.setattr(pseudo_labels, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_pseudo_labels(teachers, out=out, rules=RULES)
        for part in out.rglob("*.part.jsonl"):
            part.write_bytes(part.read_bytes() + b'{"name": "half a li')  # killed in the middle of a line
    assert (out / boxes_file("train")).exists()
    monkeypatch.setattr(pseudo_labels, "predict", real)
    for _ in range(2):  # then there is nothing left to do
        write_pseudo_labels(teachers, out=out, rules=RULES)
        assert content(out) == content(labels)


def test_labels_made_otherwise_are_refused(labels: Path, teachers: list[Teacher], tmp_path: Path) -> None:
    out = shutil.copytree(labels, tmp_path / "pseudo")
    with pytest.raises(ConfigError, match=r"'det' in this folder were made otherwise: rules differ"):
        write_pseudo_labels(teachers, out=out)
    other = Teacher(
        cfg=teachers[0].cfg, weights=write_weights(teachers[0].cfg, tmp_path / "x.safetensors", seed=7)
    )
    with pytest.raises(ConfigError, match="weights_sha256"):
        write_pseudo_labels([other], out=out, rules=RULES)
    assert content(out) == content(labels)


def test_teachers_that_do_not_fit(teachers: list[Teacher], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both have the task 'det'"):
        write_pseudo_labels([teachers[0], teachers[0]], out=tmp_path)
    with pytest.raises(ConfigError, match="--score is 1.5"):
        LabelRules(score=1.5)
    headless = Teacher(cfg=fcos_config(tmp_path, tmp_path, model={"type": "X"}), weights="x")
    with pytest.raises(ConfigError, match="neither box_head nor seg_head"):
        write_pseudo_labels([headless], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_student_learns_from_them(bdd100k_root: Path, index: Path, labels: Path) -> None:
    """Every frame has both kinds of pseudo labels, and the losses of eq. 9 are there."""
    cfg = fcos_config(bdd100k_root, index, model__label_weights={"gt": 0.8, "pseudo": 0.2})
    dataset = DATASETS.build({**cfg.train_dataloader["dataset"], "pseudo_labels": str(labels)})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    kinds = dataset.label_kinds
    first = [kinds.index(("det",)), kinds.index(("seg",))]
    batch = model.data_preprocessor(pseudo_collate([dataset[position] for position in first]), True)
    losses = model(**batch, mode="loss")
    wanted = {f"{task}.{kind}.{name}" for kind in ("gt", "pseudo")
              for task, name in (("det", "loss_focal"), ("seg", "loss_ce"))}  # fmt: skip
    assert wanted <= losses.keys()
    assert all(bool(value.isfinite()) for value in losses.values())
