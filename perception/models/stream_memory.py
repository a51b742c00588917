"""What a model in training carries from step to step: the BEV features of each slot's last frame.

Legend: R rows (slots of the batch; with `TaskStreams` each of them once per group), Q BEV cells, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

Group = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class _Rows:
    bev: Tensor  # (R, Q, C), zero where it was not finite
    is_finite: Tensor  # (R,), bool


@dataclass(frozen=True, kw_only=True)
class _Frame:
    token: str
    bev_aug: list[list[float]] | None

    @classmethod
    def of(cls, sample: BaseDataElement) -> "_Frame":
        bev_aug = sample.metainfo.get("bev_aug")
        return cls(
            token=sample.metainfo["sample_token"],
            bev_aug=None if bev_aug is None else [[float(value) for value in row] for row in bev_aug],
        )


class StreamMemory:
    """The carried BEV features of streams, and the check that each is the one its successor needs.

    A frame of a stream names in its metainfo `carried_token` the frame that its slot of the batch had in the step
    before, or "" where it begins without history. Data samples without this key are no streams and change nothing.
    Where the metainfo has `bev_aug`, both frames' must be equal: a mirrored world is no history of a plain one.

    What a step's forwards make counts from the next step on, that is from the first batch of other frames. So a step
    may run its batch several times: once per group of tasks, each with a memory of its own, or again to explain a
    failure. Features that are not finite are never carried; such a slot's next frame begins without history. Likewise
    all slots of a group that a step left out. Features are detached: no gradient crosses a step.

    Example:
        >>> frame = lambda token, before: BaseDataElement(metainfo=dict(sample_token=token, carried_token=before))
        >>> memory = StreamMemory()
        >>> memory.recall([frame("a", "")])
        (None, None)
        >>> memory.keep(torch.full((1, 2, 1), 5.0))
        >>> prev_bev, known = memory.recall([frame("b", "a")])
        >>> prev_bev.flatten().tolist(), known.tolist()
        ([5.0, 5.0], [True])
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._frames: list[_Frame] = []  # of this step's batch
        self._before: list[_Frame] = []  # of the step before
        self._made: dict[Group, _Rows] = {}  # by this step's forwards
        self._carried: dict[Group, _Rows] = {}  # by those of the step before
        self._is_streaming = False

    def recall(
        self, data_samples: Sequence[BaseDataElement], group: Group = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The history of a batch, before its forward.

        Args:
            data_samples: the batch's.
            group: what the forward computes, where a step runs several.

        Returns:
            (R, Q, C) and (R,) bool, which rows count; or None, None where there is no history.

        Raises:
            ValueError: a part of the samples belongs to streams, a slot did not have the frame before that a sample
                names, or had it augmented otherwise.
        """
        named = [sample.metainfo.get("carried_token") for sample in data_samples]
        self._is_streaming = any(token is not None for token in named)
        if not self._is_streaming:
            return None, None
        if any(token is None for token in named):
            raise ValueError(
                f"{named.count(None)} of {len(named)} samples of a batch belong to no stream. Take all from one loader "
                "with StreamSampler"
            )
        frames = [_Frame.of(sample) for sample in data_samples]
        if [frame.token for frame in frames] != [frame.token for frame in self._frames]:  # a new step
            self._frames, self._before = frames, self._frames
            self._made, self._carried = {}, self._made
        self._check(named)
        rows = self._carried.get(group)
        if rows is None or not any(named):
            return None, None
        if all(named):  # the usual case needs nothing from the host
            return rows.bev, rows.is_finite
        is_continued = torch.tensor([bool(token) for token in named], device=rows.bev.device)
        return rows.bev, rows.is_finite & is_continued.repeat(len(rows.bev) // len(frames))

    def keep(self, bev: Tensor, group: Group = None) -> None:
        """Note what the forward of the batch last recalled has made; nothing if it was no streams'.

        Args:
            bev: (R, Q, C).
            group: as in `recall`.
        """
        if not self._is_streaming:
            return
        bev = bev.detach()
        is_finite = bev.isfinite().flatten(1).all(dim=1)
        self._made[group] = _Rows(
            bev=torch.where(is_finite[:, None, None], bev, torch.zeros_like(bev)), is_finite=is_finite
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that the next step needs."""
        return {
            "tokens": [frame.token for frame in self._frames],
            "bev_aug": [frame.bev_aug for frame in self._frames],
            "groups": [
                {
                    "tasks": None if group is None else list(group),
                    "bev": rows.bev.cpu(),
                    "is_finite": rows.is_finite.cpu(),
                }
                for group, rows in self._made.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Put back what `state_dict` returned, on the model's device."""
        self.clear()
        self._frames = [
            _Frame(token=token, bev_aug=bev_aug)
            for token, bev_aug in zip(state["tokens"], state["bev_aug"], strict=True)
        ]
        for group in state["groups"]:
            tasks = None if group["tasks"] is None else tuple(group["tasks"])
            self._made[tasks] = _Rows(bev=group["bev"].to(device), is_finite=group["is_finite"].to(device))

    def _check(self, named: Sequence[str]) -> None:
        for slot, (token, frame) in enumerate(zip(named, self._frames, strict=True)):
            if not token:
                continue
            before = self._before[slot] if slot < len(self._before) else None
            if before is None or token != before.token:
                raise ValueError(
                    f"sample {frame.token} continues a stream in which {token} came just before, but its slot {slot} "
                    f"of the batch had {'nothing' if before is None else before.token}. Streams need all batches in "
                    "the order of StreamSampler, from an epoch's start on or from a checkpoint of the same run"
                )
            if frame.bev_aug != before.bev_aug:
                raise ValueError(
                    f"sample {frame.token} and the one before it in its stream, {token}, have different BEV "
                    f"augmentations, {frame.bev_aug} and {before.bev_aug}, so one is no history of the other. A "
                    "transform that moves the LiDAR frame must draw from results['sequence_rng']"
                )
