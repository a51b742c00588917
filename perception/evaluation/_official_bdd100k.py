"""Scores by BDD100K's own toolkit, from files, quietly."""

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from perception.evaluation._bdd100k_toolkit import toolkit_module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back prints and progress bars, and the division of classes that are not there."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        np.errstate(divide="ignore", invalid="ignore"),
    ):
        yield


def official_box_scores(
    truth: str | Path, result: str | Path, *, names: Collection[str] | None = None
) -> dict[str, float]:
    """What `python -m bdd100k.eval.run -t det -g truth -r result` prints, in per cent.

    Args:
        truth: Scalabel file of the ground truth.
        result: Scalabel file of predictions.
        names: only these frames.

    Returns:
        The toolkit's summary without what it leaves undefined.
    """
    with _quiet():
        load = toolkit_module("scalabel.label.io").load
        config = toolkit_module("bdd100k.common.utils").load_bdd100k_config("det")
        convert = toolkit_module("bdd100k.label.to_scalabel").bdd100k_to_scalabel
        frames = []
        for path in (truth, result):
            found = load(str(path)).frames
            kept = [frame for frame in found if names is None or frame.name in names]
            frames.append(convert(kept, config))
        scores = (
            toolkit_module("scalabel.eval.detect").evaluate_det(*frames, config.scalabel, nproc=1).summary()
        )
    return {name: float(value) for name, value in scores.items() if not math.isnan(value)}


def official_seg_scores(
    truth: Sequence[Path], result: Mapping[str, Path], *, class_names: Sequence[str]
) -> dict[str, float]:
    """What `python -m bdd100k.eval.run -t sem_seg` prints for folders of masks, in per cent.

    Args:
        truth: mask files of the ground truth.
        result: stem → mask file of predictions; one that is missing counts as ignored pixels.
        class_names: of the classes; scores of single classes are given for those alone that the toolkit knows.

    Returns:
        `mIoU`, `mAcc`, `fIoU`, `pAcc`, and `IoU/<class>`, `Acc/<class>`.
    """
    with _quiet():
        evaluate = toolkit_module("bdd100k.eval.seg").evaluate_sem_seg
        scores = evaluate(
            [str(path) for path in truth], [str(path) for path in result.values()], nproc=1, with_logs=False
        )
    single = {
        f"{kind}/{name}": float(value)
        for kind, values in (("IoU", scores.IoU[0]), ("Acc", scores.Acc[0]))
        for name, value in values.items()
        if name in class_names
    }
    return {name: float(value) for name, value in scores.summary().items()} | single
