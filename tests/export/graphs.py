"""Small models as graph modules, and random inputs for them."""

import numpy as np
import torch
from torch import Tensor

from perception.export.graph_module import BEVFormerGraph, FCOSGraph
from perception.export.prepare_images import PrepareImages
from perception.export.samples import Step
from tests.models.images import IMAGE as IMAGE_2D
from tests.models.images import image_model
from tests.models.small import IMAGE, ring_of_cameras, small_model
from tests.models.unified import unified_model

SOURCE = (120, 90)  # width, height of the images as decoded


def settle(model):
    """Evaluation mode, with statistics and last layers that make values worth comparing."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.normal_(std=0.1)
        for name, parameter in model.named_parameters():
            if "reg_branches" in name or "cls_branches" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


def bev_graph(kind: str = "small", **changes) -> BEVFormerGraph:
    model = settle(unified_model(**changes) if kind == "unified" else small_model(**changes))
    rows, columns = IMAGE
    size = (columns, rows + 6)
    prepare = PrepareImages(model.data_preprocessor, size=size, interpolation="bilinear", crop_top=6)
    return BEVFormerGraph(model, prepare).eval()


def image_graph(**changes) -> FCOSGraph:
    model = settle(image_model(**changes))
    rows, columns = IMAGE_2D
    prepare = PrepareImages(model.data_preprocessor, size=(columns, rows), interpolation="area", crop_top=0)
    return FCOSGraph(model, prepare).eval()


def random_steps(module, num_steps: int = 3, batch: int = 1, source: tuple[int, int] = SOURCE) -> list[Step]:
    """Frames of a stream: noise seen by a ring of cameras, and a drive along a bend."""
    rng = np.random.default_rng(0)
    steps = []
    for number in range(num_steps):
        shapes = module.example(batch, source)
        inputs = {"images": rng.integers(0, 256, shapes["images"].shape, dtype=np.uint8)}
        if "lidar2img" in shapes:
            matrix = ring_of_cameras(image=(source[1], source[0]), height=0.3)[None].repeat(batch, 1, 1, 1)
            motion = rng.normal(size=(batch, 18)).astype(np.float32)
            motion[:, 17] = 7.3 * (number + 1)
            inputs |= {"lidar2img": matrix.numpy(), "ego_motion": motion}
            inputs["use_prev_bev"] = np.full(batch, float(number > 0), np.float32)
        steps.append(Step(inputs, tuple(f"token{number}" for _ in range(batch))))
    return steps


def tensors(module, step: Step, prev_bev: Tensor | None = None) -> list[Tensor]:
    values = {name: torch.from_numpy(value) for name, value in step.inputs.items()}
    if "prev_bev" in module.input_names:
        batch = len(values["images"])
        values["prev_bev"] = module.example(batch, SOURCE)["prev_bev"] if prev_bev is None else prev_bev
    return [values[name] for name in module.input_names]
