"""Labels that a teacher made, read from folders in BDD100K's own layout."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from perception.datasets._files import file_names
from perception.datasets.bdd100k_layout import LabelKind, boxes_file, masks_folder
from perception.structures.scalabel import read_boxes
from perception.utils import DataError

_MAKE = "make them by `perception pseudo-label`, which goes on where it was stopped"


class PseudoLabels:
    """Boxes and masks of teachers for the frames of a split.

    A folder holds `labels/det_20/det_<split>.json` (a result file: frames with `category`, `score`, `box2d`),
    `labels/sem_seg/masks/<split>/<name>.png` (train ids, 255 where the teacher was not sure), or both.

    Args:
        folders: one, or several for several teachers; no two may have the same kind.
        split: "train", "val" or "test".

    Raises:
        DataError: a folder has neither, two have the same, or the boxes are not readable.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], *, split: str) -> None:
        listed = [folders] if isinstance(folders, str | Path) else list(folders)
        self._split = split
        self._boxes: Path | None = None
        self._masks: Path | None = None
        for folder in map(Path, listed):
            boxes, masks = folder / boxes_file(split), folder / masks_folder(split)
            if not boxes.is_file() and not masks.is_dir():
                raise DataError(
                    f"the folder of pseudo labels has neither {boxes_file(split)} nor {masks_folder(split)}; {_MAKE}.",
                    path=folder,
                )
            self._boxes = _only(self._boxes, boxes) if boxes.is_file() else self._boxes
            self._masks = _only(self._masks, masks) if masks.is_dir() else self._masks
        self._mask_names = set() if self._masks is None else file_names(self._masks)
        self._read_boxes()

    def _read_boxes(self) -> None:
        # One block for all frames: tens of thousands of small arrays would cost each worker a copy of their pages.
        self._spans: dict[str, tuple[int, int]] = {}
        parts: list[np.ndarray] = []
        count = 0
        for frame in () if self._boxes is None else read_boxes(self._boxes):
            stem = PurePosixPath(frame.name).stem
            if stem in self._spans:
                raise DataError(
                    f"its name stands twice in the pseudo labels; {_MAKE}.",
                    sample_token=frame.name,
                    path=self._boxes,
                )
            self._spans[stem] = (count, count + len(frame.labels))
            count += len(frame.labels)
            parts.append(np.column_stack([frame.bboxes, frame.labels, frame.scores]).astype(np.float32))
        self._rows = np.concatenate(parts) if parts else np.zeros((0, 6), np.float32)

    def kinds_of(self, name: str) -> set[LabelKind]:
        """Which labels there are for a frame."""
        stem = PurePosixPath(name).stem
        found: set[LabelKind] = {"det"} if stem in self._spans else set()
        return found | {"seg"} if f"{stem}.png" in self._mask_names else found

    @property
    def kinds(self) -> set[LabelKind]:
        """Which labels there are for any frame."""
        found: set[LabelKind] = set() if self._boxes is None else {"det"}
        return found if self._masks is None else found | {"seg"}

    def check(self, name: str, *, labelled: Sequence[str]) -> None:
        """Refuse a frame that has neither a label nor a pseudo label of a kind that there is.

        Args:
            name: the frame's.
            labelled: kinds of labels that it has itself.

        Raises:
            DataError: it lacks one.
        """
        lacking = self.kinds - self.kinds_of(name) - set(labelled)
        if lacking:
            path = self._boxes if "det" in lacking else self._masks
            what = "boxes" if "det" in lacking else "a mask"
            raise DataError(
                f"the frame has no label and no pseudo label of {what}; {_MAKE}.",
                sample_token=name,
                path=path,
            )

    def fields(self, name: str) -> dict[str, Any]:
        """What a frame's pseudo labels add to the pipeline's dict.

        Returns:
            Where there are boxes `pseudo_bboxes` (n, 4) float32, far edges exclusive, `pseudo_labels` (n,) int64 and
            `pseudo_scores` (n,) float32; where there is a mask `pseudo_seg_path`.
        """
        stem = PurePosixPath(name).stem
        fields: dict[str, Any] = {}
        if stem in self._spans:
            rows = self._rows[slice(*self._spans[stem])]
            fields["pseudo_bboxes"] = rows[:, :4].copy()
            fields["pseudo_labels"] = rows[:, 4].astype(np.int64)
            fields["pseudo_scores"] = rows[:, 5].copy()
        if self._masks is not None and f"{stem}.png" in self._mask_names:
            fields["pseudo_seg_path"] = str(self._masks / f"{stem}.png")
        return fields


def _only(found: Path | None, another: Path) -> Path:
    if found is not None:
        raise DataError(
            f"two folders of pseudo labels have the same kind, {found} too; name one of them.", path=another
        )
    return another
