"""BDD100K: frames that carry boxes, a mask of semantic segmentation, or both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perception.datasets._indexed_dataset import IndexedDataset, check_choice
from perception.datasets._packed import PackedSamples, read_index
from perception.datasets.bdd100k_layout import LABEL_KINDS, LabelKind
from perception.datasets.pseudo_labels import PseudoLabels
from perception.registry import DATASETS
from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES
from perception.utils import DataError, stable_seed


@DATASETS.register_module()
class BDD100KDataset(IndexedDataset):
    """Frames of a prepared index, of the image set 100k, of 10k, or of both in one.

    The pipeline gets a dict with `img_path`, `frame_name` (the image's file name; `sample_token` is the same), `img_id`
    (its position in the index), `ori_shape` (height, width) and `rng`; and only where the frame has that label
    `gt_bboxes` (n, 4) float32, x1, y1, x2, y2 in pixels with exclusive far edges, `gt_labels` (n,) int64 and
    `gt_ignored` (n,) bool (crowds, and categories that are no class), or `seg_path`. What pseudo labels add is told at
    `PseudoLabels.fields`. `rng` depends on (seed, epoch, index) only, or on (seed, visit, index) for samplers that take
    a frame more than once in an epoch.

    *Source*: the joint stream of MCLGS, section 4.1.2, whose samples have the labels of one task only.

    Args:
        ann_file: index written by `perception data prepare`, absolute or relative to `data_root`.
        data_root: the BDD100K root; image and mask paths are relative to it.
        pipeline: transforms, as configs or callables; the last one is `PackImageInputs`.
        labels: "det", "seg" or both: the kinds that are given, and the image sets that frames come from.
        pseudo_labels: folder, or folders, of a teacher's labels, see `PseudoLabels`; None: none.
        on_error: "strict" raises at a defective frame; "skip" takes the next one with the same kinds of labels instead,
            at most one in a thousand. In test mode nothing is ever skipped.
        seed: seed of the augmentation; a run gives its `randomness.seed` unless it is set here.
        test_mode: items are for evaluation.
        indices: a subset, as in MMEngine: the first n, the last −n, or a list. Results on it are not comparable.
        metainfo: additions to the index's metainfo.
        lazy_init: read the index at first use instead of now.

    Raises:
        DataError: the index is missing or damaged, or holds defective frames that may not be skipped; a frame lacks
            its pseudo labels.
        ValueError: an option is out of range.
    """

    METAINFO = {"classes": BDD_BOX_CLASSES, "seg_classes": BDD_SEG_CLASSES}

    def __init__(
        self,
        *,
        ann_file: str,
        data_root: str,
        pipeline: Sequence[Mapping[str, Any] | Callable],
        labels: LabelKind | Sequence[LabelKind] = LABEL_KINDS,
        pseudo_labels: str | Sequence[str] | None = None,
        on_error: Literal["strict", "skip"] = "strict",
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        metainfo: Mapping[str, Any] | None = None,
        lazy_init: bool = False,
    ) -> None:
        chosen = (labels,) if isinstance(labels, str) else tuple(labels)
        for kind in chosen or ("",):
            check_choice("labels", kind, LABEL_KINDS)
        self.labels = tuple(kind for kind in LABEL_KINDS if kind in chosen)
        self._pseudo_folders = pseudo_labels
        self._pseudo: PseudoLabels | None = None
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            pipeline=pipeline,
            on_error=on_error,
            seed=seed,
            test_mode=test_mode,
            indices=indices,
            metainfo=metainfo or {},
            lazy_init=lazy_init,
        )

    # ------------------------------------------------------------------------------------------------ the index

    def _read_samples(self) -> tuple[dict[str, Any], PackedSamples]:
        self._names: list[str] = []
        self._sets: list[int] = []  # bit k: the frame is in the image set of the k-th kind
        self._labelled: list[int] = []  # bit k: it has this label
        self._defects: dict[int, tuple[str, str | None]] = {}
        metainfo, samples = read_index(self.ann_file, self._visit)
        if metainfo.get("dataset") != "bdd100k":
            raise DataError(
                "this is no index of BDD100K; make one by `perception data prepare ROOT`.", path=self.ann_file
            )
        if self._pseudo_folders is not None:
            self._pseudo = PseudoLabels(self._pseudo_folders, split=metainfo["split"])
        return metainfo, samples

    def _visit(self, entry: dict[str, Any]) -> None:
        position = len(self._names)
        labelled = entry.get("labelled") or [
            kind for kind, key in (("det", "bboxes"), ("seg", "seg_path")) if key in entry
        ]
        self._names.append(entry.get("name", ""))
        self._sets.append(self._bits(entry.get("kinds", ())))
        self._labelled.append(self._bits(labelled))
        if "defect" in entry:
            self._defects[position] = (entry["defect"], entry.get("defect_path"))

    def _bits(self, kinds: Sequence[str]) -> int:
        return sum(
            1 << number for number, kind in enumerate(LABEL_KINDS) if kind in kinds and kind in self.labels
        )

    def _candidates(self) -> np.ndarray:
        candidates = np.flatnonzero(self._sets)
        if not len(candidates):
            raise DataError(
                f"the index holds no frame of the image sets of labels={self.labels}; choose another kind, or prepare "
                "the index again when the archives are there.",
                path=self.ann_file,
            )
        return candidates

    def _check_samples(self) -> None:
        """Refuse or count the frames that `prepare` found defective, and look for pseudo labels."""
        for position in np.unique(self._order).tolist():
            if position in self._defects:
                if self.on_error == "strict" or self.test_mode:
                    raise self._refusal(position)
                self._count_skipped(position, self._defect_at(position))
            elif self._pseudo is not None:
                self._pseudo.check(self._names[position], labelled=self._kinds(self._labelled[position]))

    def _defect_at(self, position: int) -> DataError:
        message, path = self._defects[position]
        return DataError(message, sample_token=self._names[position], path=path)

    def _refusal(self, position: int) -> DataError:
        first = self._defect_at(position)
        remedy = "" if self.test_mode else ", or train with `--on-bad-sample skip` (on_error='skip')"
        return DataError(
            f"the index has {len(self._defects)} defective frames; repair them and prepare it again{remedy}. The "
            f"first: {first.message}",
            sample_token=first.sample_token,
            path=first.path,
        )

    def _token_at(self, position: int) -> str:
        return self._names[position]

    def _kinds(self, bits: int) -> tuple[LabelKind, ...]:
        return tuple(kind for number, kind in enumerate(LABEL_KINDS) if bits >> number & 1)

    @property
    def scene_tokens(self) -> list[str]:
        """Every frame is a scene of its own: a sampler of scenes may put it anywhere."""
        return self.sample_tokens

    @property
    def label_kinds(self) -> list[tuple[LabelKind, ...]]:
        """Kinds of labels of each item, as far as they are given."""
        self.full_init()
        return [self._kinds(self._labelled[position]) for position in self._order]

    # ------------------------------------------------------------------------------------------------ items

    def _substitutes(self, idx: int) -> Iterator[int]:
        """The following items with the same kinds of labels, so that a batch's ratio stays what it is."""
        wanted = self._labelled[self._order[idx]]
        return (other for other in super()._substitutes(idx) if self._labelled[self._order[other]] == wanted)

    def read_visit(self, idx: int, *, visit: int) -> Any:
        """An item of which all that is random is drawn from `visit` instead of the epoch.

        Args:
            idx: the item.
            visit: a number that differs from visit to visit of this item.

        Raises:
            DataError: the frame is defective and may not be skipped.
        """
        return self._read_or_replace(idx, visit=visit)

    def prepare_data(self, idx: int, *, visit: int | None = None) -> Any:
        """Compose an item and run the pipeline on it."""
        position = int(self._order[idx])
        if position in self._defects:
            raise self._defect_at(position)
        entry = self._samples[position]
        rng = self._generator(position)
        if visit is not None:
            rng = np.random.default_rng(stable_seed(self.seed, "visit", visit, position))
        name = entry["name"]
        results: dict[str, Any] = {
            "img_path": str(Path(self.data_root) / entry["img_path"]),
            "frame_name": name,
            "sample_token": name,
            "img_id": position,
            "ori_shape": (entry["height"], entry["width"]),
            "rng": rng,
        }
        if "det" in self.labels and "bboxes" in entry:
            results["gt_bboxes"] = np.array(entry["bboxes"], dtype=np.float32).reshape(-1, 4)
            results["gt_labels"] = np.array(entry["labels"], dtype=np.int64)
            results["gt_ignored"] = np.array(entry["ignored"], dtype=bool)
        if "seg" in self.labels and "seg_path" in entry:
            results["seg_path"] = str(Path(self.data_root) / entry["seg_path"])
        if self._pseudo is not None:
            results |= self._pseudo.fields(name)
        return self.pipeline(results)
