"""What a model in training carries from step to step: the BEV features of each slot's last frame.

Legend: R rows (slots of the batch; with `TaskStreams` each of them once per group), Q BEV cells, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
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


class StreamMemory:
    """The carried BEV features of streams, and the check that each is the one its successor needs.

    A frame of a stream names in its metainfo `carried_token` the frame that its slot of the batch had in the step
    before, or "" where it begins without history. Data samples without this key are no streams and change nothing.

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
        self._tokens: list[str] = []  # of this step's rows
        self._before: list[str] = []  # of the step before
        self._made: dict[Group, _Rows] = {}  # by this step's forwards
        self._carried: dict[Group, _Rows] = {}  # by those of the step before
        self._is_streaming = False

    def recall(
        self,
        data_samples: Sequence[BaseDataElement],
        group: Group = None,
        label: Callable[[Sequence[str]], list[str]] = list,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The history of a batch, before its forward.

        Args:
            data_samples: the batch's.
            group: what the forward computes, where a step runs several.
            label: from the samples' tokens to one name per row, as `TaskStreams.label`.

        Returns:
            (R, Q, C) and (R,) bool, which rows count; or None, None where there is no history.

        Raises:
            ValueError: a part of the samples belongs to streams, or a slot did not have the frame before that a sample
                names.
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
        tokens = label([sample.metainfo["sample_token"] for sample in data_samples])
        wanted = label([str(token) for token in named])
        if tokens != self._tokens:  # a new step
            self._tokens, self._before = tokens, self._tokens
            self._made, self._carried = {}, self._made
        self._check(wanted)
        rows = self._carried.get(group)
        if rows is None or not any(wanted):
            return None, None
        device = rows.bev.device
        return rows.bev, rows.is_finite & torch.tensor([bool(token) for token in wanted], device=device)

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
            "tokens": list(self._tokens),
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
        self._tokens = list(state["tokens"])
        for group in state["groups"]:
            tasks = None if group["tasks"] is None else tuple(group["tasks"])
            self._made[tasks] = _Rows(bev=group["bev"].to(device), is_finite=group["is_finite"].to(device))

    def _check(self, wanted: Sequence[str]) -> None:
        for slot, token in enumerate(wanted):
            had = self._before[slot] if slot < len(self._before) else "nothing"
            if token and token != had:
                raise ValueError(
                    f"sample {self._tokens[slot]} continues a stream in which {token} came just before, but its slot "
                    f"{slot} of the batch had {had}. Streams need batches in the order of StreamSampler, all of them, "
                    "from an epoch's start on or from a checkpoint of the same run"
                )
