"""Run folders as training and `perception test` leave them, with made-up numbers."""

import json
import math

import cv2
import numpy as np

from perception.structures import CLASS_NAMES

TASKS = ("cls", "box", "velocity", "seg")
TOKENS = [f"{index:032x}" for index in range(6)]


def config(balancer="sum", seed=0, ann_file="index/mini_val.json", data_root="data/nuscenes"):
    return {
        "val_dataloader": {"dataset": {"type": "x.Y", "data_root": data_root, "ann_file": ann_file}},
        "randomness": {"seed": seed},
        "optim_wrapper": {"balancer": {"name": balancer}},
        "work_dir": f"work_dirs/{balancer}",
    }


def metrics(score=0.3, miou=0.4):
    found = {"NDS": score, "mAP": score / 2, "mIoU": miou, "mATE": 1.0 - score, "comparable": True}
    found |= {f"AP/{name}": score * index / 10 for index, name in enumerate(CLASS_NAMES)}
    found |= {f"ATE/{name}": 1.0 - score * index / 10 for index, name in enumerate(CLASS_NAMES)}
    return found | {"IoU/divider": miou, "IoU/ped_crossing": miou / 2, "IoU/boundary": miou + 0.1}


def balance(step):
    """One update of a method that weighs and projects, its conflicts coming and going."""
    pairs = [(a, b) for i, a in enumerate(TASKS) for b in TASKS[i + 1 :]]
    cosines = {f"{a}/{b}": math.sin(step / 7 + index) for index, (a, b) in enumerate(pairs)}
    share = sum(value < 0 for value in cosines.values()) / len(cosines)
    priorities = dict(zip(TASKS, (0.1, 0.2, 0.3, 0.4), strict=True))
    return {
        "weights": dict.fromkeys(TASKS, 1.0),
        "coefficients": {task: 1.0 + 0.1 * step * index for index, task in enumerate(TASKS)},
        "grad_norms": {task: 10.0 ** (index - 2) for index, task in enumerate(TASKS)},
        "cosines": cosines,
        "conflict_share": share,
        "WPCGradWeighting": {"order": list(TASKS), "projected": [["cls", "seg"]], "priorities": priorities},
    }


def log(num_steps=40, score=0.3, scale=1.0, is_balanced=True, tasks=TASKS):
    lines = [{"kind": "event", "event": "start", "step": 0}]
    for step in range(1, num_steps + 1):
        losses = {task: scale * (index + 1) / step for index, task in enumerate(tasks)}
        line = {
            "kind": "train",
            "step": step,
            "epoch": 1 + (step - 1) // 10,
            "lr": 1e-3 / step,
            "tasks": losses,
        }
        line |= {"loss": sum(losses.values()), "step_time": 0.5, "data_time": 0.1, "memory_mb": 900.0}
        lines.append(line | ({"balance": balance(step)} if is_balanced else {}))
        if step % 10 == 0:
            lines.append({"kind": "val", "step": step, "metrics": metrics(score * step / num_steps)})
    return lines


def write_run(folder, *, cfg=None, scores=None, lines=None, samples=None, pictures=()):
    """A run folder; the parts given are written, the defaults being those of a plain sum."""
    folder.mkdir(parents=True)
    contents = {
        "config": config() if cfg is None else cfg,
        "env": {"python": "3.11", "packages": {"torch": "2.13.0"}, "cpu": folder.name},
        "metrics": metrics() if scores is None else scores,
        "summary": {
            "steps": 40,
            "seconds": {"train": 754.0},
            "samples_per_second": 1.9,
            "peak_memory_mb": 2345.6,
        },
    }
    if samples is not None:
        contents["metrics_per_sample"] = {"model": "x", "samples": samples}
    for name, content in contents.items():
        if content:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in (log() if lines is None else lines))
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    if pictures:
        draw(folder / "pictures" / "ranked", pictures)
    return folder


def draw(folder, tokens):
    """A picture per sample, each of another shade, and the file that says which is which."""
    folder.mkdir(parents=True)
    names = {}
    for index, token in enumerate(tokens):
        names[token] = f"prediction_{index:06d}_{token[-4:]}.jpg"
        picture = np.full((120, 160, 3), 40 + 30 * index, np.uint8)
        cv2.imencode(".jpg", picture)[1].tofile(folder / names[token])
    content = {"frame": "x", "pictures": names, "samples": {}}
    (folder / "predictions.json").write_text(json.dumps(content), encoding="utf-8")


def sample_scores(values):
    return {token: {"mAP": value / 2, "mIoU": value} for token, value in zip(TOKENS, values, strict=True)}
