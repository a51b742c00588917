"""Every frame of a BDD100K split with its labels, checked: what `prepare` writes down and `verify` tells."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from perception.datasets._files import file_names
from perception.datasets._image_files import read_image, read_image_size
from perception.datasets._tables import Problem
from perception.datasets.bdd100k_layout import (
    LABEL_KINDS,
    SPLITS,
    LabelKind,
    boxes_file,
    images_folder,
    masks_folder,
)
from perception.datasets.seg_masks import read_mask
from perception.structures.scalabel import frame_boxes, read_frames
from perception.utils import DataError, show_progress

_NUM_THREADS = 4
_CHUNK = 256  # frames at work at a time, so that memory is bounded
_DIGITS = 6  # of a pixel; BDD100K's own boxes have no more


@dataclass(frozen=True)
class SurveyedFrame:
    """A frame that was looked at.

    Attributes:
        entry: its entry in the index; None for a name that the file has twice.
        problems: its defects.
    """

    entry: dict[str, Any] | None
    problems: list[Problem]


@dataclass(frozen=True)
class _Job:
    name: str
    kinds: list[LabelKind]
    frame: dict[str, Any] | None = None
    mask: str | None = None
    problems: list[Problem] = field(default_factory=list)


def present_splits(root: str | Path) -> list[str]:
    """Splits of which a root holds labels, and the test split where it holds its images.

    Raises:
        DataError: the root holds none.
    """
    root = Path(root)
    found = [split for split in SPLITS if _Split(root, split).is_present]
    if not found:
        inner = root / "bdd100k"
        hint = f" Did you mean {inner}?" if (inner / "images").is_dir() else ""
        raise DataError(
            f"this is no BDD100K root: it has neither {boxes_file('train')} nor {masks_folder('train')}, nor those of "
            f"val, nor images of test.{hint}",
            path=root,
        )
    return found


def survey(
    root: str | Path, split: str, *, decode_images: bool = False, progress: bool = True
) -> Iterator[SurveyedFrame]:
    """Look at all frames of a split: those with boxes in their file's order, then those with masks alone, by name.

    A frame that both image sets have by name (without its extension) comes once, with both labels, and its image is
    that of the set 100k. Without labels a frame comes only in the test split.

    Args:
        root: the BDD100K root.
        split: "train", "val" or "test".
        decode_images: decode every image, not only its header.
        progress: report progress on stderr.

    Raises:
        DataError: a file of labels is not readable, or a folder of images is missing as a whole.
    """
    found = _Split(Path(root), split)
    found.check_folders()
    jobs = show_progress(found.jobs(), f"Checking {split}", is_enabled=progress)
    return _in_chunks(jobs, lambda job: found.look_at(job, decode_image=decode_images))


def shared_images(root: str | Path, first: tuple[LabelKind, str], second: tuple[LabelKind, str]) -> set[str]:
    """Names without extension of images that two folders have in common."""
    stems = [
        {PurePosixPath(name).stem for name in file_names(Path(root) / images_folder(kind, split))}
        for kind, split in (first, second)
    ]
    return stems[0] & stems[1]


class _Split:
    """The files of one split."""

    def __init__(self, root: Path, split: str) -> None:
        self._root, self._split = root, split
        self.has_boxes = (root / boxes_file(split)).is_file()
        self.has_masks = (root / masks_folder(split)).is_dir()
        self._images = {kind: file_names(root / images_folder(kind, split)) for kind in LABEL_KINDS}

    @property
    def is_present(self) -> bool:
        has_images = self._split == "test" and any(self._images.values())
        return self.has_boxes or self.has_masks or has_images

    def check_folders(self) -> None:
        has_labels: dict[LabelKind, bool] = {"det": self.has_boxes, "seg": self.has_masks}
        for kind in LABEL_KINDS:
            if has_labels[kind] and not self._images[kind]:
                raise DataError(
                    f"there are labels of {self._split}, but no images for them; unpack BDD100K's "
                    f"{'100K' if kind == 'det' else '10K'} images into the root.",
                    path=self._root / images_folder(kind, self._split),
                )

    def jobs(self) -> Iterator[_Job]:
        masks = {
            stem: name for stem, name in _by_stem(file_names(self._masks)).items() if name.endswith(".png")
        }
        images = _by_stem(self._images["seg"])
        seen: set[str] = set()
        for name, frame in self._frames():
            stem = PurePosixPath(name).stem
            if stem in seen:
                yield _Job(
                    name, ["det"], problems=[self._problem(name, "its name stands twice in the file.")]
                )
                continue
            seen.add(stem)
            mask = masks.pop(stem, None)
            yield _Job(name, ["det"] if mask is None else ["det", "seg"], frame=frame, mask=mask)
        for stem in sorted(masks):
            yield _Job(images.get(stem, f"{stem}.jpg"), ["seg"], mask=masks[stem])
        if self._split == "test" and not self.has_masks:
            for stem in sorted(set(images) - seen):
                yield _Job(images[stem], ["seg"])

    def _frames(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        if self.has_boxes:
            for frame in read_frames(self._root / boxes_file(self._split)):
                yield frame["name"], frame
        elif self._split == "test":
            for name in sorted(self._images["det"]):
                yield name, None

    @property
    def _masks(self) -> Path:
        return self._root / masks_folder(self._split)

    def look_at(self, job: _Job, *, decode_image: bool) -> SurveyedFrame:
        """Check a frame; called from several threads."""
        if job.problems:
            return SurveyedFrame(None, job.problems)
        kind, problems = job.kinds[0], list[Problem]()
        img_path = f"{images_folder(kind, self._split)}/{job.name}"
        entry: dict[str, Any] = {"name": job.name, "kinds": job.kinds, "img_path": img_path}
        size = None
        try:
            size = self._image_size(job.name, kind, decode_image=decode_image)
            entry |= {"width": size[0], "height": size[1]}
        except DataError as error:
            problems.append(self._problem(job.name, error.message, path=error.path))
        if job.frame is not None:
            boxes, defects = frame_boxes(job.frame, size=size)
            problems += [self._problem(job.name, text) for text in defects]
            entry |= {
                "bboxes": boxes.bboxes.round(_DIGITS).tolist(),
                "labels": boxes.labels.tolist(),
                "ignored": boxes.is_ignored.astype(int).tolist(),
            }
        if job.mask is not None:
            entry["seg_path"] = f"{masks_folder(self._split)}/{job.mask}"
            try:
                read_mask(self._root / entry["seg_path"], size=size, frame=job.name)
            except DataError as error:
                problems.append(self._problem(job.name, error.message, path=error.path))
        return SurveyedFrame(entry, problems)

    def _image_size(self, name: str, kind: LabelKind, *, decode_image: bool) -> tuple[int, int]:
        path = self._root / images_folder(kind, self._split) / name
        if name not in self._images[kind]:
            raise DataError("its image is missing; unpack the archive that holds it.", path=path)
        if not decode_image:
            return read_image_size(path)
        height, width = read_image(path).shape[:2]
        return (width, height)

    def _problem(self, name: str, message: str, *, path: str | None = None) -> Problem:
        source = path or str(self._root / boxes_file(self._split))
        return Problem(message, table="frame", token=name, path=source)


def _by_stem(names: Iterable[str]) -> dict[str, str]:
    return {PurePosixPath(name).stem: name for name in sorted(names)}


def _in_chunks(jobs: Iterator[_Job], look_at: Callable[[_Job], SurveyedFrame]) -> Iterator[SurveyedFrame]:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while chunk := list(islice(jobs, _CHUNK)):
            yield from pool.map(look_at, chunk)
