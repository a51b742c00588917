"""What multi-task models have in common: a trunk that all tasks share, and heads that can be run apart."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from perception.balancing import RotoGrad, SharedFeatures, TaskLosses, TaskStreams
from perception.models._memory_format import choose_memory_format
from perception.models.backbone_weights import load_backbone
from perception.models.task_losses import group_losses
from perception.registry import MODELS

MODULE_CONFIG = Mapping[str, Any]


class MultiTaskModel(BaseModel):
    """An image backbone, a neck, and heads; with everything that balancing methods and the runner ask of a model.

    A subclass has `box_head` and `seg_head`, one of which may be None, says in `head_tasks` which tasks each of them
    computes, passes what the heads read through `shared_features`, and reads it by `_read`.

    Args:
        img_backbone: config of the image backbone (mmdet).
        img_neck: config of the neck.
        data_preprocessor: config of the data preprocessor.
        backbone_weights: local file with pretrained backbone weights; None: from scratch.
        backbone_sha256: expected hash of that file.
        init_cfg: MMEngine's.

    Attributes:
        head_tasks: head's name, "det" (`box_head`) or "seg" (`seg_head`) → its tasks, which are computed together.
        kpi_metrics: task → the metrics whose mean is its score, for balancing methods that look at scores.
        trunk_names: submodules that all tasks share, in the order in which they run.
        shared_features: where the trunk ends and the heads begin.
        task_streams: repeats a batch per group of tasks, where a method asks for it.
        rotations: what turns the shared features for each head, where a method has put it in.
    """

    head_tasks: Mapping[str, tuple[str, ...]] = {"det": ("det",), "seg": ("seg",)}
    kpi_metrics: Mapping[str, Sequence[str]] = {}
    trunk_names: tuple[str, ...] = ("img_backbone", "img_neck")
    box_head: nn.Module | None
    seg_head: nn.Module | None

    def __init__(
        self,
        *,
        img_backbone: MODULE_CONFIG,
        img_neck: MODULE_CONFIG,
        data_preprocessor: MODULE_CONFIG | nn.Module | None,
        backbone_weights: str | None,
        backbone_sha256: str | None,
        init_cfg: dict[str, Any] | None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.img_backbone: nn.Module = MODELS.build(img_backbone)
        self.img_neck: nn.Module = MODELS.build(img_neck)
        self._memory_format = choose_memory_format(self.img_backbone, self.img_neck)
        self.backbone_weights = backbone_weights
        self.backbone_sha256 = backbone_sha256
        self.shared_features = SharedFeatures()
        self.task_streams = TaskStreams()
        self.rotations: RotoGrad | None = None
        self._only: tuple[str, ...] | None = None

    @property
    def task_groups(self) -> dict[str, tuple[str, ...]]:
        """Head → its tasks: what can be computed apart."""
        heads = {"det": self.box_head, "seg": self.seg_head}
        return {name: tasks for name, tasks in self.head_tasks.items() if heads[name] is not None}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that this model trains, in the order of the Gram matrix's rows."""
        return tuple(task for tasks in self.task_groups.values() for task in tasks)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts of the losses that have counts of their own; by default each task is one."""
        return self.task_names

    @property
    def num_classes(self) -> int | None:
        """Number of detection classes, None without a box head."""
        return None if self.box_head is None else int(self.box_head.num_classes)

    @property
    def stitch_stages(self) -> tuple[str, ...]:
        """Where cross-stitch mixes by default: after the backbone's trained stages and the rest of the trunk."""
        stages = [f"img_backbone.{name}" for name in getattr(self.img_backbone, "res_layers", ())]
        return tuple(
            name
            for name in (*stages, *self.trunk_names[1:])
            if any(parameter.requires_grad for parameter in self.get_submodule(name).parameters())
        )

    @property
    def heads_read_apart(self) -> bool:
        """Whether each head reads the shared features by modules of its own."""
        return True

    @contextmanager
    def only_tasks(self, tasks: Sequence[str]) -> Iterator[None]:
        """Forwards inside compute the losses and predictions of these tasks alone.

        Raises:
            ValueError: an unknown task, or one without the others of its head.
        """
        unknown = [task for task in tasks if task not in self.task_names]
        if unknown:
            raise ValueError(f"only_tasks names {unknown}; the model's tasks are {list(self.task_names)}")
        for name, together in self.task_groups.items():
            missing = [task for task in together if task not in tasks]
            if missing and len(missing) < len(together):
                raise ValueError(
                    f"the tasks {list(together)} come from one {name} head, so they can't be computed apart; "
                    f"{list(tasks)} lacks {missing}. Keep them together"
                )
        before, self._only = self._only, tuple(tasks)
        try:
            yield
        finally:
            self._only = before

    def init_weights(self) -> None:
        """Initialise as the configs say, then load the backbone's file, or say that there is none."""
        super().init_weights()
        load_backbone(self.img_backbone, self.backbone_weights, self.backbone_sha256)

    def _dump_init_info(self) -> None:
        """Nothing: MMEngine would log how each single parameter was initialised."""

    def parse_losses(self, losses: dict[str, Tensor]) -> "tuple[TaskLosses, OrderedDict[str, Tensor]]":
        """Group the loss dict by task; MMEngine hands the first result to the optimiser wrapper."""
        return group_losses(losses, self.task_names, self.part_names)

    def forward(
        self,
        inputs: dict[str, Tensor],
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: Literal["tensor", "loss", "predict"] = "tensor",
    ) -> Any:
        """Run the model.

        Args:
            inputs: as the data preprocessor returns them; "img" has B first.
            data_samples: B data samples; needed but for mode "tensor".
            mode: "tensor" gives a dict of raw outputs, "loss" the loss dict, "predict" the data samples with
                predictions.

        Raises:
            ValueError: unknown mode, missing data samples, or inputs of the wrong shape.
            DataError: a ground-truth box is not finite or has no size.
        """
        self._check_inputs(inputs)
        if mode == "tensor":
            return self._forward_raw(inputs)
        if data_samples is None or len(data_samples) != len(inputs["img"]):
            found = "none" if data_samples is None else str(len(data_samples))
            raise ValueError(
                f"mode {mode!r} needs {len(inputs['img'])} data_samples, one per item of the batch; got {found}."
            )
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}.")

    def loss(self, inputs: dict[str, Tensor], data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Loss terms and target counts; a task without a target in the batch is left out."""
        raise NotImplementedError

    def predict(self, inputs: dict[str, Tensor], data_samples: Sequence[Any]) -> list[Any]:
        """Data samples with predictions."""
        raise NotImplementedError

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last layer that all tasks share."""
        raise NotImplementedError

    def _forward_raw(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        raise NotImplementedError

    def _check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def _pyramid(self, images: Tensor) -> Sequence[Tensor]:
        """(M, 3, H, W) → per level (M, C, h, w), by backbone and neck."""
        return self.img_neck(self.img_backbone(images.contiguous(memory_format=self._memory_format)))

    def _read(self, features: Tensor, head: str) -> Tensor:
        """What a head of `head_tasks` reads: its own stream's rows (..., C), turned for it."""
        rows = self.task_streams.rows(features, self.head_tasks[head][0])
        return rows if self.rotations is None else self.rotations.rotate(rows, head)

    def _runs(self, head: str) -> bool:
        """Whether a head is there and wanted."""
        return head in self.task_groups and (self._only is None or self.head_tasks[head][0] in self._only)
