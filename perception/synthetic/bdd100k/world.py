"""Writing a whole world in BDD100K's format: pictures in parallel, label files, and the guard around the folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2

from perception.synthetic.bdd100k.clip import IMAGES_PER_CLIP, ClipSpec, build_clip
from perception.synthetic.bdd100k.names import IMAGE_SETS, SPLITS
from perception.synthetic.bdd100k.picture import take_picture
from perception.synthetic.output import claim, publishing
from perception.synthetic.workers import count_workers, run_tasks
from perception.utils import Progress, write_json_atomic

FORMAT = 3  # raised whenever the same parameters would give another world
MAX_IMAGES = 100_000  # of each set and split
MIN_SIZE, MAX_SIZE = (64, 36), (3840, 2160)
JPEG_QUALITY = 90
BYTES_PER_PIXEL = 0.5  # of picture and mask, a generous estimate


def synthesize_bdd100k(
    out: str | Path,
    *,
    num_det: tuple[int, int] = (200, 40),
    num_seg: tuple[int, int] = (200, 40),
    size: tuple[int, int] = (1280, 720),
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a synthetic world in BDD100K's layout, as downloaded and unpacked.

    `images/100k/{train,val}` have boxes (`labels/det_20/det_{train,val}.json`), `images/10k/{train,val}` have masks
    (`labels/sem_seg/masks/{train,val}`); the two sets share no image and no street, and neither do train and val.
    The files are made in a folder beside `out` and renamed at the end, so `out` is either absent, the old world or
    the whole new one. A finished world with the same parameters is kept. A picture depends on `seed` and `size` only:
    not on the number of workers, nor on how many others there are.

    Args:
        out: folder to write.
        num_det: numbers of images with boxes, (train, val).
        num_seg: numbers of images with masks, (train, val).
        size: (width, height) of all images; BDD100K's is 1280 × 720.
        seed: the world's seed, >= 0.
        num_workers: processes; None takes one per available core.
        overwrite: replace a synthetic world with other parameters. Nothing else is ever replaced.
        progress: report progress on standard error.

    Returns:
        The folder written (or kept), as given.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        DataError: `out` is something else, holds another world, or the disk is full.

    Example:
        >>> root = synthesize_bdd100k("data/bdd100k-synthetic", num_det=(8, 4), num_seg=(8, 4))  # doctest: +SKIP
    """
    _check(num_det, num_seg, size, seed, num_workers)
    out = Path(out)
    parameters = {
        "format": FORMAT,
        "version": "bdd100k",
        "num_det": list(num_det),
        "num_seg": list(num_seg),
        "size": list(size),
        "seed": seed,
    }
    total = sum(num_det) + sum(num_seg)
    need = int(total * size[0] * size[1] * BYTES_PER_PIXEL)
    partial = claim(out, parameters, overwrite=overwrite, need=need)
    if partial is None:
        if progress:
            print(f"{out}: a complete world with these parameters exists; kept", file=sys.stderr)
        return out
    tasks = []
    for image_set, numbers in zip(IMAGE_SETS, (num_det, num_seg), strict=True):
        for split, number in zip(SPLITS, numbers, strict=True):
            tasks += _tasks(seed, image_set, split, number, size, partial)
    bar = Progress("Synthesizing", total=total, unit="images", is_enabled=progress)
    frames: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    with publishing(partial, out, parameters):
        for image_set in IMAGE_SETS:
            for split in SPLITS:
                (partial / "images" / image_set / split).mkdir(parents=True)
        for spec, done in run_tasks(_record_clip, tasks, count_workers(num_workers, len(tasks))):
            if spec.image_set == "100k":
                frames[spec.split] += done
            bar.advance(len(done))
        for split in SPLITS:
            path = partial / "labels" / "det_20" / f"det_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, sorted(frames[split], key=lambda frame: frame["name"]), indent=0)
    bar.close()
    return out


def _tasks(
    seed: int, image_set: str, split: str, number: int, size: tuple[int, int], root: Path
) -> list[tuple[ClipSpec, int, tuple[int, int], str]]:
    """One task per clip; the last may take fewer pictures than the others."""
    return [
        (
            ClipSpec(seed, image_set, split, first // IMAGES_PER_CLIP),
            min(IMAGES_PER_CLIP, number - first),
            size,
            str(root),
        )
        for first in range(0, number, IMAGES_PER_CLIP)
    ]


def _record_clip(
    spec: ClipSpec, number: int, size: tuple[int, int], root: str
) -> tuple[ClipSpec, list[dict[str, Any]]]:
    """Write a clip's pictures, and its masks where its set has them; return what the label file says of them."""
    cv2.setNumThreads(1)
    clip = build_clip(spec)
    frames = []
    for k in range(number):
        picture, stem = take_picture(clip, k, size), spec.image_name(k)
        path = Path(root, "images", spec.image_set, spec.split, f"{stem}.jpg")
        _write(path, picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if spec.image_set == "10k":
            _write(Path(root, "labels", "sem_seg", "masks", spec.split, f"{stem}.png"), picture.mask, [])
        frame: dict[str, Any] = {"name": path.name, "attributes": clip.attributes, "timestamp": 10000}
        if picture.labels:  # as in the real file, a frame without any box has no such key
            frame["labels"] = picture.labels
        frames.append(frame)
    return spec, frames


def _write(path: Path, pixels: Any, options: list[int]) -> None:
    ok, content = cv2.imencode(path.suffix, pixels, options)
    if not ok:
        raise OSError(f"OpenCV could not encode {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def _check(
    num_det: tuple[int, int],
    num_seg: tuple[int, int],
    size: tuple[int, int],
    seed: int,
    num_workers: int | None,
) -> None:
    for name, pair in (("num_det", num_det), ("num_seg", num_seg), ("size", size)):
        if len(pair) != 2:
            raise ValueError(f"{name} must be two numbers, found {pair}")
    workers = 1 if num_workers is None else num_workers
    for name, value, low, high, hint in (
        ("num_det[0]", num_det[0], 0, MAX_IMAGES, "numbers of train and val images with boxes"),
        ("num_det[1]", num_det[1], 0, MAX_IMAGES, "numbers of train and val images with boxes"),
        ("num_seg[0]", num_seg[0], 0, MAX_IMAGES, "numbers of train and val images with masks"),
        ("num_seg[1]", num_seg[1], 0, MAX_IMAGES, "numbers of train and val images with masks"),
        ("width", size[0], MIN_SIZE[0], MAX_SIZE[0], "BDD100K's images are 1280 × 720"),
        ("height", size[1], MIN_SIZE[1], MAX_SIZE[1], "BDD100K's images are 1280 × 720"),
        ("seed", seed, 0, 2**31 - 1, "any number in this range gives a world of its own"),
        ("num_workers", workers, 1, 256, "leave it out to use all cores"),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, found {value!r} of type {type(value).__name__}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low}..{high}, found {value}: {hint}")
    if not sum(num_det) + sum(num_seg):
        raise ValueError("a world needs at least one image; all four numbers are 0")
