"""Which norm a layer feeds, read from the graph of small networks and of BEVFormer's own layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.balancing.connections import Connection, ConnectionTrace
from perception.balancing.task_copies import use_task
from perception.balancing.task_norms import convert_task_norms

TASKS = ("det", "seg")


def _trace(model: nn.Module, *args: object, training: bool = True) -> dict[str, Connection]:
    converted = convert_task_norms(model, TASKS).train(training)
    with use_task(converted, "det"), ConnectionTrace(converted) as trace:
        with torch.no_grad():
            converted(*args)  # as history frames do
        converted(*args)
    found = trace.connections()
    assert len({connection.layer for connection in found}) == len(found)
    return {connection.layer: connection for connection in found}


class _Block(nn.Module):
    """A residual block with the shortcut's own convolution, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(F.dropout(self.conv2(hidden), 0.5, self.training)) + self.shortcut(x))


def test_a_residual_block() -> None:
    found = _trace(nn.Sequential(_Block(), nn.MaxPool2d(2)), torch.randn(2, 2, 4, 4))
    assert found == {
        f"0.{conv}": Connection(f"0.{conv}", f"0.{norm}")
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut.0", "shortcut.1"))
    }


class _Transformer(nn.Module):
    """Post-norm attention and feed-forward, as in BEVFormer's layers."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(channels, channels)  # as wide as the values
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.linear1, self.linear2 = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.sampling_offsets(x) @ x.transpose(1, 2)).softmax(dim=-1)
        x = self.norms[0](x + F.dropout(self.output_proj(weights @ self.value_proj(x)), 0.1, self.training))
        return self.norms[1](x + self.linear2(F.gelu(self.linear1(x))))


def test_a_post_norm_transformer_layer() -> None:
    assert _trace(_Transformer(), torch.randn(2, 5, 8)) == {
        "output_proj": Connection("output_proj", "norms.0"),
        "value_proj": Connection("value_proj", "norms.0", ("output_proj",)),
        "linear2": Connection("linear2", "norms.1"),
        "linear1": Connection("linear1", "norms.1", ("linear2",)),
    }


class _Pyramid(nn.Module):
    """Convolutions without a norm that feed an attention's values."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral, self.smooth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.embed = nn.Parameter(torch.randn(8))
        self.layer = _Transformer()

    def forward(self, x: Tensor) -> Tensor:
        feature = self.smooth(F.interpolate(self.lateral(x), scale_factor=2, mode="nearest"))
        return self.layer(torch.cat([feature.flatten(2).transpose(1, 2) + self.embed], dim=1))


def test_a_chain_of_several_layers() -> None:
    found = _trace(_Pyramid(), torch.randn(2, 3, 2, 2))
    # The residual path reaches the first norm directly, through additions and reshapes only.
    assert found["smooth"] == Connection("smooth", "layer.norms.0")
    assert found["lateral"] == Connection("lateral", "layer.norms.0", ("smooth",))


def test_products_of_features_and_other_widths_end_the_search() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.wide, self.norm = nn.Linear(4, 4), nn.Linear(4, 8), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return self.norm(x * self.gate(x).sigmoid() + self.wide(x).view(-1, 2, 4)[:, 0])

    assert _trace(Gate(), torch.randn(3, 4)) == {}


def test_frozen_layers_are_left_out() -> None:
    block = _Block()
    block.conv1.requires_grad_(False)
    assert set(_trace(block, torch.randn(2, 2, 4, 4))) == {"conv2", "shortcut.0"}


def test_the_first_norm_executed_wins() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)
            self.late, self.early = nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.late(x + self.linear(self.early(x)))

    found = _trace(PreNorm(), torch.randn(3, 4))
    assert found == {"stem": Connection("stem", "early"), "linear": Connection("linear", "late")}


def test_hooks_are_removed() -> None:
    converted = convert_task_norms(_Block(), TASKS)
    with ConnectionTrace(converted):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.modules())
