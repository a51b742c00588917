#!/usr/bin/env python
"""Time the ways in which a BEV cell can find its cameras, against the share of visible cells and the BEV's size.

Examples:
    python tools/bench_cameras.py
    python tools/bench_cameras.py --threads 2 --out work_dirs/cameras.json
    python tools/bench_cameras.py --device cuda --dtype bfloat16 --sizes 150,200

One layer of spatial cross-attention at BEVFormer's sizes (256 channels, 8 heads, 8 points, 4 heights) with six cameras
in a ring, whose angle of view sets how many cells each sees (nuScenes' rig: 19 %). The ways, all with static shapes:
    slots         each cell looks into up to M cameras, those that see it: what `SpatialCrossAttention` does
    all           each cell looks into every camera, and the unseen ones weigh nothing: M = 6
    rebatching    each camera has a list of up to K cells, which is gathered and scattered: upstream's way, K fixed
    sorting       one list of up to 2 pairs (cell, camera) per cell, sorted by use, gathered and scattered
Prints milliseconds (median of the rounds, in turns) of a forward, of forward and backward, and the MiB that autograd
keeps in between; on CUDA also the allocator's peak. Exit code 0; 2 for a wrong option.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perception.models.camera_projection import CameraPlan, pillar_points, plan_cameras, project_pillars
from perception.models.spatial_cross_attention import SpatialCrossAttention
from perception.ops import multi_scale_deformable_attention
from perception.structures import BEVGrid
from perception.utils import write_json_atomic

Attend = Callable[[Tensor, Tensor], Tensor]

IMAGE = (288, 512)
SHAPES = [(9, 16)]
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
CAMERAS, CHANNELS, HEADS, POINTS, HEIGHTS, SLOTS = 6, 256, 8, 8, 4, 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def ring_of_cameras(degrees: float) -> Tensor:
    """(1, N, 4, 4) lidar2img of cameras that look outwards all around."""
    rows, columns = IMAGE
    focal = columns / 2 / math.tan(math.radians(degrees / 2))
    intrinsics = torch.tensor([[focal, 0, columns / 2], [0, focal, rows / 2], [0, 0, 1.0]])
    matrices = torch.eye(4).repeat(1, CAMERAS, 1, 1)
    for camera in range(CAMERAS):
        yaw = 2 * math.pi * camera / CAMERAS
        right = torch.tensor([math.cos(yaw), -math.sin(yaw), 0.0])
        forward = torch.tensor([math.sin(yaw), math.cos(yaw), 0.0])
        matrices[0, camera, :3, :3] = intrinsics @ torch.stack([right, torch.tensor([0.0, 0, -1]), forward])
    return matrices


class Rebatching:
    """Each camera's cells, gathered into a list of the same length for all.

    Args:
        attention: whose weights are used.
        points: (1, N, Q, D, 2), where pillars land.
        visible: (1, N, Q), bool.
        capacity: K.
    """

    def __init__(
        self, attention: SpatialCrossAttention, points: Tensor, visible: Tensor, capacity: int
    ) -> None:
        self.attention = attention
        cells = visible[0].byte().argsort(dim=-1, descending=True, stable=True)[:, :capacity]  # (N, K)
        used = visible[0].gather(1, cells)
        self.cells = torch.where(used, cells, 0)
        gathered = points[0].gather(1, self.cells[..., None, None].expand(-1, -1, *points.shape[3:]))
        self.points = torch.where(used[..., None, None], gathered, -10.0)  # (N, K, D, 2)
        self.weight = used / visible[0].sum(0).clamp(min=1)[self.cells]  # (N, K)
        self.map_idx: Tensor | None = None

    def __call__(self, query: Tensor, features: Tensor) -> Tensor:
        """(1, Q, C), (N, S, C) → (1, Q, C)."""
        lists, length = self.cells.shape
        place = (lists, length, HEADS, 1, POINTS // HEIGHTS, HEIGHTS)
        size = query.new_tensor([(width, height) for height, width in SHAPES])
        offsets = self.attention.sampling_offsets(query)[0][self.cells].view(*place, 2).float() / size
        weights = self.attention.attention_weights(query).view(-1, HEADS, POINTS).softmax(-1)[self.cells]
        locations = (self.points[:, :, None, None, None] + offsets).flatten(4, 5)
        value = self.attention.value_proj(features).unflatten(-1, (HEADS, -1))
        found = multi_scale_deformable_attention(
            value, SHAPES, locations, weights.view(lists, length, HEADS, 1, POINTS), self.map_idx
        )
        total = query.new_zeros(query.shape[1], CHANNELS)
        total = total.index_add(
            0, self.cells.flatten(), (found * self.weight[..., None]).flatten(0, 1).to(query.dtype)
        )
        return query + self.attention.output_proj(total)[None]


class Sorting(Rebatching):
    """All pairs of a cell and a camera that sees it, in one list; arguments as `Rebatching`'s."""

    def __init__(
        self, attention: SpatialCrossAttention, points: Tensor, visible: Tensor, capacity: int
    ) -> None:
        flat = visible.flatten(1)  # (1, N·Q)
        super().__init__(attention, points.flatten(1, 2)[:, None], flat[:, None], capacity)
        number = self.cells  # (1, K), of pairs
        self.map_idx = (number // visible.shape[2])[..., None]
        self.cells = number % visible.shape[2]
        hits = visible[0].sum(0).clamp(min=1)
        self.weight = (self.weight > 0) / hits[self.cells]


def ways(
    attention: SpatialCrossAttention, size: int, degrees: float, device: str
) -> tuple[dict[str, Attend], float]:
    """The ways by name, and the share of cells that a camera sees."""
    points = pillar_points(BEVGrid.from_range(RANGE, size, size), HEIGHTS).to(device)
    reference, mask = project_pillars(points, ring_of_cameras(degrees).to(device), IMAGE)
    visible = mask.any(-1)

    def planned(plan: CameraPlan) -> Attend:
        return lambda query, features: attention(query, features, SHAPES, plan)

    found = {
        "slots": planned(plan_cameras(reference, mask, max_cameras_per_cell=SLOTS)),
        "all": planned(plan_cameras(reference, mask)),
        "rebatching": Rebatching(attention, reference, visible, int(visible.sum(-1).max())),
        "sorting": Sorting(attention, reference, visible, SLOTS * size * size),
    }
    return found, float(visible.float().mean())


def run_once(attend: Attend, query: Tensor, features: Tensor) -> dict[str, float]:
    """Milliseconds and MiB of one forward and backward."""
    for tensor in (query, features):
        tensor.grad = None
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if query.is_cuda:
        torch.cuda.reset_peak_memory_stats(query.device)
    start = _now(query)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = attend(query, features)
    forward = _now(query)
    out.float().sum().backward()
    end = _now(query)
    peak = torch.cuda.max_memory_allocated(query.device) if query.is_cuda else 0
    return {
        "ms_forward": 1e3 * (forward - start),
        "ms_forward_backward": 1e3 * (end - start),
        "mib_kept": sum(kept.values()) / 2**20,
        "mib_peak": peak / 2**20,
    }


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def measure(size: int, degrees: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each way; a first round goes unmeasured, and checks that all find the same."""
    torch.manual_seed(0)
    attention = SpatialCrossAttention(embed_dims=CHANNELS, num_heads=HEADS, num_points=POINTS, dropout=0.0)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.02)
    attention = attention.to(options.device)
    query = torch.randn(1, size * size, CHANNELS, device=options.device, requires_grad=True)
    cells = sum(height * width for height, width in SHAPES)
    features = torch.randn(CAMERAS, cells, CHANNELS, device=options.device, requires_grad=True)
    found, share = ways(attention, size, degrees, options.device)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    with torch.autocast(
        torch.device(options.device).type, DTYPES[options.dtype], enabled=options.dtype != "float32"
    ):
        expected = found["all"](query, features)
        tolerance = 1e-4 if options.dtype == "float32" else 5e-2
        for name, attend in found.items():
            torch.testing.assert_close(
                attend(query, features).float(), expected.float(), atol=tolerance, rtol=tolerance, msg=name
            )
        for number in range(options.rounds + 1):
            for name, attend in found.items():
                measured = run_once(attend, query, features)
                if number:
                    runs[name].append(measured)
    return [
        {
            "bev": size,
            "visible": share,
            "way": name,
            **{key: statistics.median(run[key] for run in rows) for key in rows[0]},
        }
        for name, rows in runs.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="default CUDA where it is there")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the autocast")
    parser.add_argument("--sizes", default="50,100,150,200", help="sides of the BEV, in cells")
    parser.add_argument(
        "--views",
        default="30,50,70,90,110",
        help="angles of view at the first size, degrees; the others have 70",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds measured (default 7)")
    parser.add_argument("--out", metavar="JSON", help="file for the result")
    options = parser.parse_args(arguments)
    try:
        sizes = [int(word) for word in options.sizes.split(",")]
        views = [float(word) for word in options.views.split(",")]
    except ValueError:
        parser.error("--sizes and --views take numbers with commas between them")
    if min(sizes) < 1 or not 0 < min(views) <= max(views) < 120 or min(options.threads, options.rounds) < 1:
        parser.error("--sizes, --threads and --rounds must be 1 or more, --views between 0 and 120")
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    print(f"torch {torch.__version__}, {name}, {options.dtype}, median of {options.rounds}")
    print(f"{'BEV':>9}{'visible':>9}  {'way':12}{'fwd ms':>9}{'fwd+bwd':>9}{'MiB kept':>10}{'MiB peak':>10}")
    rows: list[dict[str, Any]] = []
    for size, view in [(sizes[0], view) for view in views] + [(size, 70.0) for size in sizes[1:]]:
        for row in measure(size, view, options):
            rows.append(row)
            print(
                f"{row['bev']:>4} x {row['bev']:<3}{row['visible']:8.0%}  {row['way']:12}{row['ms_forward']:9.1f}"
                f"{row['ms_forward_backward']:9.1f}{row['mib_kept']:10.1f}{row['mib_peak']:10.1f}",
                flush=True,
            )
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        result = {"torch": torch.__version__, "device": name, "threads": options.threads, "rows": rows}
        write_json_atomic(options.out, {"dtype": options.dtype, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
