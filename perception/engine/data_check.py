"""What a model and its data must agree on, looked at before a run starts."""

from collections.abc import Mapping
from typing import Any

import torch

from perception.config import ConfigError
from perception.engine.vocabulary import check_classes
from perception.models.camera_projection import pillar_points, project_pillars
from perception.structures import BEVGrid
from perception.utils.log import get_logger

logger = get_logger(__name__)

_CELLS = 50  # along each axis: fine enough to find overlaps, coarse enough for hundreds of scenes in seconds


def check_data(model: Any, datasets: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Compare classes, and the rig's cameras.

    Args:
        model: the model.
        datasets: by the names of their loaders.
        metrics: lists of metrics, likewise.

    Raises:
        ConfigError: they do not fit each other.
    """
    check_classes(model, datasets, metrics)
    check_cameras(model, datasets)


def check_cameras(model: Any, datasets: Mapping[str, Any]) -> None:
    """Count the cameras that see each cell in the first sample of every scene, on the stored images' whole area.

    Args:
        model: the model; one without `bev_encoder.max_cameras_per_cell` has nothing to check.
        datasets: by name; those that can't tell their cameras (no `read_cameras`) are left out.

    Raises:
        ConfigError: a cell is seen by more cameras than the model looks into.
    """
    encoder = getattr(model, "bev_encoder", None)
    allowed = getattr(encoder, "max_cameras_per_cell", None)
    if encoder is None or allowed is None or allowed >= encoder.num_cams:
        return
    grid = BEVGrid.from_range(encoder.grid.pc_range, _CELLS, _CELLS)
    points = pillar_points(grid, encoder.ref_3d.shape[1])
    for name, dataset in datasets.items():
        if not hasattr(dataset, "read_cameras"):
            continue
        token = None
        for token, lidar2img, size in dataset.read_cameras():
            cameras = torch.from_numpy(lidar2img).float()[None]
            _, mask = project_pillars(points, cameras, (size[1], size[0]))
            found = int(mask.any(dim=-1).sum(dim=1).max())
            if found > allowed:
                problem = (
                    f"model.bev_encoder.max_cameras_per_cell is {allowed}, but in sample {token} of {name} {found} "
                    f"cameras see one BEV cell. Set it to {found}, or to None (every camera)"
                )
                raise ConfigError("The config has 1 problem:", problems=[problem])
        if token is None:
            logger.warning(
                "%s: its index names no image sizes, so how many cameras see a cell was not checked against "
                "model.bev_encoder.max_cameras_per_cell = %d; `perception data prepare` writes them",
                name, allowed,
            )  # fmt: skip
