"""`prepare` and `verify` for a BDD100K root as it was downloaded."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from perception.datasets._indexed_dataset import allowed_defects, check_choice
from perception.datasets._tables import Problem, raise_first
from perception.datasets.bdd100k_layout import IMAGE_SETS, LABEL_KINDS, check_split, images_folder, index_file
from perception.datasets.bdd100k_survey import SurveyedFrame, present_splits, shared_images, survey
from perception.utils import DataError, get_logger, write_bytes_atomic

INFO_VERSION = "1.0-perception"


def prepare_bdd100k(
    root: str | Path,
    *,
    out: str | Path | None = None,
    splits: Sequence[str] | None = None,
    on_error: Literal["strict", "skip"] = "strict",
    progress: bool = True,
) -> list[Path]:
    """Check a BDD100K root and build its index, one JSON file per split.

    The index holds one frame per line: `name`, `kinds` (the label kinds whose image sets have it), `img_path`, `width`,
    `height`; with boxes also `bboxes` (pixels, far edges exclusive), `labels` and `ignored`; with a mask `seg_path`.

    Args:
        root: folder that holds `images/` and `labels/`.
        out: folder of the index files; default `<root>/perception_index`.
        splits: some of train, val, test; default those that are there.
        on_error: "strict" refuses defective frames; "skip" writes them down as such, at most one in a thousand, and
            leaves it to `BDD100KDataset(on_error="skip")` to replace them.
        progress: report progress on stderr.

    Returns:
        The files written.

    Raises:
        DataError: a frame is defective, or the root is no BDD100K; the message names frame and file.
        ValueError: `on_error` is neither of the two.
    """
    check_choice("on_error", on_error, ("strict", "skip"))
    root = Path(root)
    out = (root / index_file("train")).parent if out is None else Path(out)
    for split in splits or ():
        check_split(split)
    found = present_splits(root)
    absent = [split for split in splits or () if split not in found]
    if absent:
        raise DataError(f"there are no labels of {absent[0]}; found are {', '.join(found)}.", path=root)
    found = [split for split in found if splits is None or split in splits]
    paths = []
    for split in found:
        frames = survey(root, split, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        paths.append(out / Path(index_file(split)).name)
        write_bytes_atomic(paths[-1], _index_pieces(split, frames, on_error))
    _warn_of_overlap(root, found)
    return paths


def verify_bdd100k(root: str | Path, *, decode_images: bool = True, progress: bool = True) -> list[Problem]:
    """Every defect of a BDD100K root.

    Args:
        root: folder that holds `images/` and `labels/`.
        decode_images: decode every image; masks always are.
        progress: report progress on stderr.

    Raises:
        DataError: the root is no BDD100K.
    """
    problems: list[Problem] = []
    for split in present_splits(root):
        try:
            for frame in survey(root, split, decode_images=decode_images, progress=progress):
                problems += frame.problems
        except DataError as error:
            problems.append(Problem(error.message, path=error.path or str(root)))
    return problems


def _index_pieces(split: str, frames: Iterator[SurveyedFrame], on_error: str) -> Iterator[bytes]:
    """The index file, frame by frame; raises at the end, before it is put into its place, if it may not be."""
    metainfo = {"dataset": "bdd100k", "split": split, "info_version": INFO_VERSION}
    yield f'{{"metainfo": {json.dumps(metainfo)},\n"data_list": ['.encode()
    problems: list[Problem] = []
    num_frames = num_defective = 0
    counts: Counter[str] = Counter()
    for frame in frames:
        num_frames += 1
        if frame.problems:
            problems += frame.problems
            num_defective += 1
        if frame.entry is None:
            continue
        entry = _marked(frame.entry, frame.problems)
        counts.update([_described(entry)])
        yield (",\n" if counts.total() > 1 else "\n").encode() + json.dumps(entry).encode()
    if on_error == "strict":
        raise_first(problems)  # one frame in a thousand may be left out, but only by choice
    allowed = allowed_defects(num_frames)
    if num_defective > allowed:
        raise DataError(
            f"{num_defective} of {num_frames} frames of {split} are defective, more than the {allowed} that may be "
            f"skipped; repair the data (`perception data verify` lists the defects). The first: {problems[0]}"
        )
    logger = get_logger(__name__)
    for problem in problems:
        logger.warning("left to on_error='skip': %s", problem)
    logger.info("%s: %s", split, ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    yield b"\n]}\n"


def _marked(entry: dict[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    if not problems:
        return entry
    kept = {key: entry[key] for key in ("name", "kinds", "img_path")}
    kinds = [kind for kind, key in (("det", "bboxes"), ("seg", "seg_path")) if key in entry]
    return {**kept, "labelled": kinds, "defect": problems[0].message, "defect_path": problems[0].path}


def _described(entry: dict[str, Any]) -> str:
    if "defect" in entry:
        return "defective"
    has = [what for what, key in (("boxes", "bboxes"), ("a mask", "seg_path")) if key in entry]
    return f"with {' and '.join(has)}" if has else "without labels"


def _warn_of_overlap(root: Path, splits: Sequence[str]) -> None:
    """Images of train that are also in the other set's val or test are known to the model before it is scored."""
    for kind, other in zip(LABEL_KINDS, reversed(LABEL_KINDS), strict=True):
        for split in splits:
            if "train" not in splits or split == "train":
                continue
            shared = shared_images(root, (kind, "train"), (other, split))
            if shared:
                get_logger(__name__).warning(
                    "%d images of %s are also in %s, e.g. %s: joint training sees them, with the labels of %s only",
                    len(shared), images_folder(other, split), images_folder(kind, "train"), min(shared),
                    IMAGE_SETS[kind],
                )  # fmt: skip
