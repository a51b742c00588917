"""Models with one batch each, on which the cost of balancing methods is measured."""

from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from perception.balancing import SharedFeatures, TaskLosses
from perception.engine.mixed_label_sampler import MixedLabelSampler
from perception.registry import DATASETS, MODELS

_TASKS = {"segmentation": 13, "depth": 1, "normals": 3, "edges": 1}
"""Task → output channels, as on NYUv2 and Taskonomy."""

_NEEDED = ("task_names", "shared_features", "last_shared_parameters")


class Workload:
    """A model and a forward on a batch that is already where the model is.

    Args:
        name: for tables.
        model: in training mode, with `task_names`, `shared_features` and `last_shared_parameters()`.
        forward: the task losses of the batch, with graphs.
        twin: makes the same network in float64, on which updates can be compared without rounding.

    Raises:
        ValueError: the model lacks one of these, or has one task only.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        forward: Callable[[], TaskLosses],
        twin: "Callable[[], Workload] | None" = None,
    ) -> None:
        missing = [key for key in _NEEDED if not hasattr(model, key)]
        if missing or len(model.task_names) < 2:
            raise ValueError(
                f"{name}: a model with two or more tasks is needed, that has {', '.join(_NEEDED)}; "
                f"{type(model).__name__} lacks {', '.join(missing) or 'a second task'}"
            )
        self.name = name
        self.model = model
        self.forward = forward
        self.twin = twin
        self.task_names: tuple[str, ...] = model.task_names
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device


class ResNetTasks(nn.Module):
    """ResNet-18 and four dense tasks, each a head of two convolutions on the last stage.

    The usual form of multi-task papers' networks.

    Args:
        head_channels: width of a head.
    """

    task_names = tuple(_TASKS)

    def __init__(self, *, head_channels: int = 64) -> None:
        super().__init__()
        self.trunk = ResNet(depth=18, out_indices=(3,), norm_eval=False, zero_init_residual=False)
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Conv2d(512, head_channels, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(head_channels, channels, 1),
                )
                for task, channels in _TASKS.items()
            }
        )
        self.shared_features = SharedFeatures()

    def last_shared_parameters(self) -> list[Tensor]:
        """Parameters of the last convolution and norm that all tasks share."""
        block = self.trunk.layer4[-1]
        return [*block.conv2.parameters(), *block.bn2.parameters()]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs (B, channels, H/32, W/32) per task; images: (B, 3, H, W)."""
        (feature,) = self.shared_features(self.trunk(images)[0])
        return {task: head(feature) for task, head in self.heads.items()}

    def losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> TaskLosses:
        """Cross-entropy, L1, cosine and binary cross-entropy, each a mean over the batch's pixels."""
        losses = {
            "segmentation": F.cross_entropy(outputs["segmentation"], targets["segmentation"]),
            "depth": F.l1_loss(outputs["depth"], targets["depth"]),
            "normals": 1 - F.cosine_similarity(outputs["normals"], targets["normals"]).mean(),
            "edges": F.binary_cross_entropy_with_logits(outputs["edges"], targets["edges"]),
        }
        count = torch.tensor(float(targets["segmentation"].numel()))
        return TaskLosses(losses, dict.fromkeys(losses, count), self.task_names)


def resnet18_workload(
    *,
    batch_size: int = 2,
    image_size: int = 128,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """ResNet-18 with four heads on random images, seeded.

    Args:
        batch_size: B.
        image_size: height and width, pixels; a multiple of 32.
        device: e.g. "cpu".
        dtype: of parameters, images and targets.

    Raises:
        ValueError: an image size that is not a multiple of 32, or so small a batch that the last stage's batch norm
            has one value per channel.
    """
    if image_size < 32 or image_size % 32 or batch_size * (image_size // 32) ** 2 < 2:
        raise ValueError(
            f"image_size is {image_size} and batch_size {batch_size}; allowed: a multiple of 32, and more than one "
            "pixel in the last stage (stride 32) for the batch norm"
        )
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, image_size // 32, image_size // 32)
    images = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    targets = {
        "segmentation": torch.randint(0, _TASKS["segmentation"], size, generator=generator),
        "depth": torch.rand(size, generator=generator)[:, None],
        "normals": F.normalize(torch.randn(batch_size, 3, *size[1:], generator=generator)),
        "edges": torch.randint(0, 2, size, generator=generator).float()[:, None],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNetTasks()
    model.to(device, dtype).train()
    images = images.to(device, dtype)
    targets = {
        task: target.to(device, dtype if target.is_floating_point() else None)
        for task, target in targets.items()
    }
    return Workload(
        "resnet18",
        model,
        lambda: model.losses(model(images), targets),
        twin=lambda: resnet18_workload(image_size=64, device=device, dtype=torch.float64),
    )


def config_workload(
    name: str,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    batch_size: int = 1,
    first: int = 0,
    device: str = "cpu",
) -> Workload:
    """A config's model on some samples of its data set, loaded and preprocessed before.

    Args:
        name: for tables.
        model: model config; its model hands out `TaskLosses`.
        dataset: dataset config.
        batch_size: samples in the batch.
        first: index of its first sample; behind the last one it goes on with the first.
        device: e.g. "cpu".
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = DATASETS.build(dict(dataset))
        batch = pseudo_collate([data[index] for index in _batch_from(data, first, batch_size)])
        network = MODELS.build(dict(model))
        network.init_weights()
    network.to(device).train()
    batch = network.data_preprocessor(batch, True)

    def forward() -> TaskLosses:
        losses: TaskLosses = network.parse_losses(network(**batch, mode="loss"))[0]
        return losses

    return Workload(name, network, forward)


def _batch_from(data: Any, first: int, batch_size: int) -> list[int]:
    """Items from one on; of a dataset whose frames have different labels, equally many of each kind."""
    kinds = {kind for carried in getattr(data, "label_kinds", ()) for kind in carried}
    if len(kinds) > 1:
        sampler = MixedLabelSampler(data, batch_size=batch_size, shuffle=False, rank=0, world_size=1)
        return [int(index) for index in islice(cycle(sampler), first, first + batch_size)]
    return [(first + number) % len(data) for number in range(min(batch_size, len(data)))]
