"""Fixtures of single pieces: the sampling primitive, rotation, projection, losses, decoding, backbone, map slicer.

Each piece is told by the arrays that a fixture holds, and takes all sizes from these.
"""

import math

import torch
from torch import Tensor

from perception.checkpoint.upstream import convert_code
from perception.engine.parity.boxes import compare_losses, compare_matches, take_targets
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.convention import convert_boxes, decode_gravity, gravity_boxes
from perception.engine.parity.encoder import compare_cameras
from perception.engine.parity.fixtures import Fixture
from perception.engine.parity.tolerances import POSITIONS
from perception.models import BEVEncoder, BoxHead
from perception.models.box_coder import BoxCoder
from perception.models.box_head import BoxOutputs
from perception.models.camera_projection import project_pillars
from perception.models.history import rotate_bev
from perception.models.map_slicer import MapSlicer
from perception.ops import multi_scale_deformable_attention
from perception.structures import BEVGrid, MapGrid, encode_boxes

TOLERANCE = 1e-5  # the folder's README
_CUBE = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


def compare_msda(fixture: Fixture) -> Comparison:
    """Multi-scale deformable attention: output and three gradients."""
    compare = Comparison(fixture)
    shapes = [(int(height), int(width)) for height, width in compare.take("spatial_shapes").tolist()]
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (compare.take(name).clone().requires_grad_() for name in names)
    output = multi_scale_deformable_attention(value, shapes, locations, weights)
    compare.relative("output (relative)", "output", output, TOLERANCE)
    output.backward(compare.take("grad_output"))
    for name, tensor in zip(names, (value, locations, weights), strict=True):
        assert tensor.grad is not None
        compare.relative("gradients (relative)", f"grad_{name}", tensor.grad, TOLERANCE)
    return compare


def compare_rotation(fixture: Fixture) -> Comparison:
    """Rotation of the history by whole cells, case by case."""
    compare = Comparison(fixture)
    for case in _cases(fixture, "/center_xy"):
        image = compare.take(f"{case}/input")  # (C, h, w)
        height, width = image.shape[1:]
        center_x, center_y = compare.take(f"{case}/center_xy").tolist()
        angle = compare.take(f"{case}/angle_deg")[None]
        grid = BEVGrid(_CUBE, height, width)
        rotated = rotate_bev(image.flatten(1).T[None], angle, grid, (center_x, center_y))
        compare.exact("rotated history", f"{case}/output", rotated[0].T.unflatten(1, (height, width)))
    return compare


def compare_projection(fixture: Fixture) -> Comparison:
    """Reference points of pillars and cells, their projections and masks."""
    compare = Comparison(fixture)
    cells = fixture.arrays["ref_2d"].reshape(-1, 2)
    width, height = (len(cells[:, axis].unique()) for axis in range(2))
    low_high = compare.take("pc_range").tolist()
    encoder = BEVEncoder(
        pc_range=low_high,
        bev_h=height,
        bev_w=width,
        embed_dims=2,
        num_heads=1,
        num_layers=0,
        num_points_in_pillar=fixture.arrays["ref_3d"].shape[1],
    )
    low, extent = torch.tensor(encoder.grid.pc_range[:3]), torch.tensor(encoder.grid.extent)
    pillars = (encoder.ref_3d - low) / extent
    compare.near("reference points", "ref_3d", pillars.transpose(0, 1)[None], TOLERANCE)
    compare.near("reference points", "ref_2d", encoder.ref_2d[None, :, None], TOLERANCE)
    image_height, image_width = compare.take("img_shape_hw").tolist()
    points, mask = project_pillars(
        encoder.ref_3d, compare.take("lidar2img")[None], (image_height, image_width)
    )
    compare_cameras(compare, "", points, mask)
    return compare


def compare_edge_losses(fixture: Fixture) -> Comparison:
    """Matching and losses on synthetic predictions, case by case; without ground truth ours has no box loss."""
    compare = Comparison(fixture)
    for case in _cases(fixture, "/all_cls_scores"):
        scores = compare.take(f"{case}/all_cls_scores").clone().requires_grad_()  # (L, 1, q, classes)
        raw = compare.take(f"{case}/all_bbox_preds").clone().requires_grad_()
        head = BoxHead(
            pc_range=_CUBE,
            bev_h=1,
            bev_w=1,
            embed_dims=2,
            num_heads=1,
            num_layers=1,
            num_classes=scores.shape[-1],
            num_query=scores.shape[2],
            upstream_compat={"drop_unknown_velocity": True},
        )
        outputs = BoxOutputs(scores, convert_code(raw), 1)
        targets = take_targets(compare, f"{case}/")
        losses = head.loss(outputs, [targets])
        if not len(targets.labels):
            compare.require("no box loss without boxes", not any("l1" in name for name in losses))
            continue
        compare_matches(compare, f"{case}/", head, outputs, targets)
        terms = compare_losses(compare, f"{case}/loss/", losses, TOLERANCE)
        torch.stack(terms).sum().backward()
        for name, tensor in (("all_cls_scores", scores), ("all_bbox_preds", raw)):
            assert tensor.grad is not None
            compare.relative("gradients (relative)", f"{case}/grad_{name}", tensor.grad, TOLERANCE)
    return compare


def compare_coder(fixture: Fixture) -> Comparison:
    """Decoding with and without threshold and centre filter, and the box code itself."""
    compare = Comparison(fixture)
    scores, codes = compare.take("cls_scores"), convert_code(compare.take("bbox_preds"))
    boxes = decode_gravity(codes)
    compare.boxes("box code", "denormalized", boxes, TOLERANCE, convert_boxes)
    bottom = boxes - (gravity_boxes(boxes) - boxes)
    compare.relative("box code", "renormalized", encode_boxes(bottom), TOLERANCE, convert=convert_code)
    for case in _cases(fixture, "/score_threshold"):
        threshold = float(compare.take(f"{case}/score_threshold"))
        coder = BoxCoder(
            post_center_range=compare.take(f"{case}/post_center_range").tolist(),
            max_num=int(compare.take(f"{case}/max_num")),
            score_threshold=None if math.isnan(threshold) else threshold,
            lower_threshold=True,
        )
        decoded = coder.decode(scores, codes)
        compare.exact("decoded labels", f"{case}/labels", decoded.labels)
        compare.near("decoded scores", f"{case}/scores", decoded.scores, TOLERANCE)
        compare.boxes(
            "decoded boxes", f"{case}/bboxes", gravity_boxes(decoded.boxes), TOLERANCE, convert_boxes
        )
    return compare


def compare_slicer(fixture: Fixture) -> Comparison:
    """The map slicer; lengths are in units of upstream's divisor. The BEV must be square.

    Positions are taken from the fixture, and compared apart: on random features their rounding would weigh more than
    the slicer's own.
    """
    compare = Comparison(fixture)
    bev = compare.take("bev_embed")  # (h·w, 1, C)
    side = math.isqrt(len(bev))
    columns, rows = compare.take("norm_map_x"), compare.take("norm_map_y")
    step = float(columns[-1] - columns[0]) / (len(columns) - 1)
    x_max = -float(rows[0]) + step / 2  # rows run along −x
    y_min = float(columns[0]) - step / 2
    grid = MapGrid((x_max - len(rows) * step, x_max), (y_min, y_min + len(columns) * step), step)
    slicer = MapSlicer(bev_grid=BEVGrid(_CUBE, side, side), map_grid=grid, divisors=(1.0, 1.0))
    positions = torch.stack(torch.broadcast_tensors(columns[None], rows[:, None]), dim=-1)
    compare.require("map positions", bool((slicer.locations - positions).abs().max() <= POSITIONS))
    slicer.locations = positions
    cropped = slicer(bev.permute(1, 2, 0).unflatten(2, (side, side)))
    compare.relative("map features (relative)", "output", cropped, TOLERANCE)
    if compare.has("orientation_probe"):
        compare.exact("orientation", "orientation_probe", _probe(slicer, compare.take("orientation_probe")))
    return compare


def _probe(slicer: MapSlicer, probe: Tensor) -> Tensor:
    """Where impulses at (BEV row, BEV column) are largest in the map: (n, 4), the pair and (map row, map column)."""
    found = []
    for row, column in probe[:, :2].tolist():
        impulse = torch.zeros(1, 1, slicer.bev_grid.bev_h, slicer.bev_grid.bev_w)
        impulse[0, 0, row, column] = 1
        sliced = slicer(impulse)[0, 0]
        found.append((row, column, *divmod(int(sliced.argmax()), sliced.shape[1])))
    return torch.tensor(found)


def _cases(fixture: Fixture, suffix: str) -> list[str]:
    return sorted(key.removesuffix(suffix) for key in fixture.arrays if key.endswith(suffix))
