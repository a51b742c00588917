"""BEVFormer with a trunk per group, against two plain BEVFormers that are run stage by stage and mixed by hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from torch import Tensor, nn

from perception.balancing import build_balancer
from perception.balancing.cross_stitch import stitch_units
from perception.config import load_config
from perception.engine import BalancedOptimWrapper
from perception.engine.task_forwards import prepare_model
from perception.models import BEVFormer, CenterHeatmap, PerspectiveHead
from perception.models._eval_mode import eval_no_grad
from perception.registry import MODELS
from tests.models.small import GRID, collate, make_item, small_model

GROUPS = ("det", "seg")
Maps = dict[str, Tensor]


def small() -> BEVFormer:
    return small_model(
        center_heatmap={"type": CenterHeatmap, **GRID},
        perspective_head={"type": PerspectiveHead, "embed_dims": 16, "num_levels": 1},
    )


def nano() -> BEVFormer:
    torch.manual_seed(0)
    model = MODELS.build(load_config("bevformer_nano").model)
    model.init_weights()
    return model


class Naive:
    """Two plain models and the mixing weights, taken from a stitched model."""

    def __init__(self, stitched: nn.Module, build: Callable[[], BEVFormer]) -> None:
        state = stitched.state_dict()
        self.models: dict[str, BEVFormer] = {}
        for group in GROUPS:
            plain = _in_double(build())
            plain.load_state_dict({name: state[_of(name, group, state)] for name in plain.state_dict()})
            self.models[group] = plain.train(stitched.training)
        self.mixtures = {
            f"{stage}.stitch.{number}.cross_stitch_weights": unit.cross_stitch_weights.detach()
            .clone()
            .requires_grad_()
            for stage, units in stitch_units(stitched).items()
            for number, unit in enumerate(units)
        }
        self.history: dict[str, Maps] = {}

    def mix(self, stage: str, maps: Maps, level: int = 0) -> Maps:
        weights = self.mixtures[f"{stage}.stitch.{level}.cross_stitch_weights"]
        det, seg = maps["det"], maps["seg"]
        shape = (1, 1, -1) if det.dim() == 3 else (1, -1, 1, 1)
        a, b, c, d = (weights[i, j].view(shape) for i in (0, 1) for j in (0, 1))
        return {"det": a * det + b * seg, "seg": c * det + d * seg}

    def features(self, images: Tensor) -> dict[str, list[Tensor]]:
        backbones = {group: model.img_backbone for group, model in self.models.items()}
        x = {g: b.maxpool(b.relu(b.norm1(b.conv1(images.flatten(0, 1))))) for g, b in backbones.items()}
        outputs: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
        for number, name in enumerate(backbones["det"].res_layers):
            x = {group: getattr(backbone, name)(x[group]) for group, backbone in backbones.items()}
            x = self.mix(f"img_backbone.{name}", x)
            for group in GROUPS if number in backbones["det"].out_indices else ():
                outputs[group].append(x[group])
        levels = {group: model.img_neck(outputs[group]) for group, model in self.models.items()}
        mixed = [
            self.mix("img_neck", {group: levels[group][level] for group in GROUPS}, level)
            for level in range(len(levels["det"]))
        ]
        return {group: [maps[group].unflatten(0, images.shape[:2]) for maps in mixed] for group in GROUPS}

    def encode(
        self, inputs: Mapping[str, Tensor], frame: int, features: Mapping[str, Sequence[Tensor]], prev: Maps
    ) -> Maps:
        found = {}
        for group, model in self.models.items():
            has_prev = inputs["has_prev"][:, frame] & (len(prev) > 0)
            args = (inputs["lidar2img"][:, frame], inputs["ego_motion"][:, frame], inputs["img"].shape[-2:])
            found[group] = model.bev_encoder(features[group], *args, prev.get(group), has_prev)
        return self.mix("bev_encoder", found)

    def bev(self, inputs: Mapping[str, Tensor], prev: Maps) -> tuple[Maps, dict[str, list[Tensor]]]:
        num_frames = inputs["img"].shape[1]
        with eval_no_grad(nn.ModuleList(self.models.values())):
            for frame in range(num_frames - 1):
                prev = self.encode(inputs, frame, self.features(inputs["img"][:, frame]), prev)
        features = self.features(inputs["img"][:, -1])
        return self.encode(inputs, num_frames - 1, features, prev), features

    def losses(self, batch: Any) -> dict[str, Tensor]:
        bev, features = self.bev(batch["inputs"], {})
        losses: dict[str, Tensor] = {}
        for group, model in self.models.items():
            model._compute_bev = lambda *_, group=group: (bev[group], features[group])
            with model.only_tasks(model.task_groups[group]):
                losses |= model.loss(batch["inputs"], batch["data_samples"])
            del model._compute_bev
        return losses

    def gradients(self) -> dict[tuple[str, str], Tensor | None]:
        found = {("", name): weights.grad for name, weights in self.mixtures.items()}
        for group, model in self.models.items():
            found |= {(group, name): parameter.grad for name, parameter in model.named_parameters()}
        return found


def _of(name: str, group: str, names: Iterable[str]) -> str:
    parts = name.split(".")
    copies = [".".join([*parts[:i], group, *parts[i:]]) for i in range(len(parts))]
    return next(candidate for candidate in (*copies, name) if candidate in names)


def _in_double(model: nn.Module) -> nn.Module:
    model.double()
    model.seg_head.class_weights = model.seg_head.class_weights.float()  # losses are float32 always
    return model


def stitched_model(build: Callable[[], BEVFormer], **changes: Any) -> tuple[nn.Module, Naive]:
    """The copies and mixtures are moved apart, so that a mistaken row or weight shows."""
    balancer = build_balancer({"name": "cross_stitch", "own": 0.7, **changes})
    stitched = _in_double(prepare_model(balancer, build()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in stitched.named_parameters():
            if ".seg." in name or "stitch" in name:
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise * (1 if "stitch" in name else parameter.abs()))
    return stitched, Naive(stitched, build)


def in_float64(model: Any, items: list[dict[str, Any]]) -> Any:
    batch = model.data_preprocessor(collate(items), True)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch["inputs"].items()}
    return {**batch, "inputs": inputs}


def check_a_step(build: Callable[[], BEVFormer], items: list[dict[str, Any]], **changes: Any) -> None:
    stitched, naive = stitched_model(build, **changes)
    stitched.train()
    for model in naive.models.values():
        model.train()
    batch = in_float64(stitched, items)
    losses, expected = stitched(**batch, mode="loss"), naive.losses(batch)
    assert set(losses) == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8, msg=name)
    for found in (losses, expected):
        sum(value.mean() for name, value in found.items() if ".loss" in name or "_loss" in name).backward()
    gradients = {name: parameter.grad for name, parameter in stitched.named_parameters()}
    num_compared = 0
    for (group, name), grad in naive.gradients().items():
        if group and grad is None and not name.startswith(stitched.trunk_names):
            continue  # the other group's head
        own = gradients[_of(name, group, gradients) if group else name]
        if grad is None or own is None:
            assert grad is own, (group, name)
            continue
        scale = float(grad.abs().max())
        torch.testing.assert_close(own, grad, rtol=1e-5, atol=1e-6 * scale + 1e-12, msg=f"{group} {name}")
        num_compared += scale > 0
    assert num_compared > 100
    state = stitched.state_dict()
    for group, model in naive.models.items():
        trunk = {name: v for name, v in model.state_dict().items() if name.startswith(model.trunk_names)}
        for name, value in trunk.items():  # running statistics
            torch.testing.assert_close(state[_of(name, group, state)], value, rtol=1e-9, atol=1e-12, msg=name)


def test_a_training_step() -> None:
    """Two samples of two frames, with every head and auxiliary loss."""
    check_a_step(small, [make_item(0), make_item(1, num_boxes=3)], per_channel=True)


@pytest.mark.slow
def test_a_step_of_the_demos_model() -> None:
    items = [make_item(seed) for seed in (0, 1)]
    for item in items:
        item["data_samples"].gt_bev_seg = PixelData(sem_seg=torch.randint(0, 4, (1, 200, 400)))
    check_a_step(nano, items)


def test_a_batch_without_one_groups_targets() -> None:
    stitched, naive = stitched_model(small)
    batch = in_float64(stitched.train(), [make_item(0, with_map=False)])
    losses, _ = stitched.parse_losses(stitched(**batch, mode="loss"))
    assert set(losses) == {"cls", "box", "velocity"}
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in stitched.named_parameters() if p.grad is not None}
    assert all(bool(grad.isfinite().all()) for grad in grads.values())
    assert float(grads["img_backbone.conv1.seg.weight"].abs().sum()) > 0  # by the mixing
    assert not any(name.startswith("seg_head") for name in grads)


def test_the_mixing_weights_have_a_rate_of_their_own() -> None:
    """Also beside a rate of the backbone, in whose names theirs lie."""
    stitched, _ = stitched_model(small)
    rates = {
        "img_backbone": dict(lr_mult=0.1),
        "cross_stitch_weights": dict(lr_mult=10.0, decay_mult=0.0),
    }
    wrapper = build_optim_wrapper(
        stitched,
        dict(
            type=BalancedOptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
            paramwise_cfg=dict(custom_keys=rates),
        ),
    )
    names = {id(parameter): name for name, parameter in stitched.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        (name,) = (names[id(parameter)] for parameter in group["params"])
        is_mixture, is_backbone = "stitch" in name, name.startswith("img_backbone")
        assert group["lr"] == pytest.approx(1e-2 if is_mixture else 1e-4 if is_backbone else 1e-3)
        assert group["weight_decay"] == (0.0 if is_mixture else 0.01)


def test_histories_are_kept_per_group() -> None:
    """Two scenes of three frames, side by side; outputs are those of the two models, each with its own history."""
    stitched, naive = stitched_model(small)
    stitched.eval()
    for model in naive.models.values():
        model.eval()
    assert set(stitched.task_streams.groups) == set(GROUPS)
    prev: Maps = {}
    for frame in range(3):
        items = [make_item(100 * frame + scene, num_frames=1) for scene in (0, 1)]
        for item in items:
            item["inputs"]["has_prev"] = torch.tensor([frame > 0])
        batch = in_float64(stitched, items)
        with torch.no_grad():
            found = stitched(**batch, mode="predict")
            bev, _ = naive.bev(batch["inputs"], prev)
            det, seg = (naive.models[group] for group in GROUPS)
            boxes = det.box_head.predict(det.box_head(bev["det"]))
            maps = seg.seg_head.predict(seg.seg_head(bev["seg"]))
        if frame:
            with torch.no_grad():
                alone, _ = naive.bev(batch["inputs"], {})
            assert float((alone["seg"] - bev["seg"]).abs().max()) > 1e-3  # the history counts
        for sample, box, classes in zip(found, boxes, maps, strict=True):
            torch.testing.assert_close(sample.pred_instances_3d.scores_3d, box.scores, rtol=1e-7, atol=1e-9)
            assert torch.equal(sample.pred_bev_seg.sem_seg[0], classes)
        prev = bev
    stitched.reset_history()
    assert stitched._histories == {}
