"""The start for short trainings: each head at one height, near its projection, over small embeddings."""

import torch

from perception.models.spatial_cross_attention import SpatialCrossAttention
from tests.models.small import make_batch, make_item, small_model


def test_each_head_starts_at_its_own_height():
    module = SpatialCrossAttention(
        embed_dims=16, num_heads=4, num_points=8, num_points_in_pillar=4, focused_init=True
    )
    weights = (
        module.attention_weights.bias.view(4, 8).softmax(-1).view(4, 2, 4).sum(1)
    )  # (head, pillar point)
    assert torch.equal(weights.argmax(-1), torch.arange(4))
    assert weights.diagonal().min() > 0.85


def test_offsets_start_within_two_cells():
    options = {"embed_dims": 16, "num_heads": 4, "num_points": 8, "num_points_in_pillar": 4}
    focused, upstream = (
        SpatialCrossAttention(**options, focused_init=flag).sampling_offsets.bias.detach().abs().max()
        for flag in (True, False)
    )
    assert float(focused) == 2.0
    assert float(upstream) == 8.0


def test_the_images_dominate_from_the_start():
    """Images change the BEV by a larger share of its spread over the cells than with upstream's noise in each cell."""

    def share(focused: bool) -> float:
        model = small_model(encoder={"focused_init": focused}).eval()
        batch = make_batch(model, [make_item(0, num_frames=1), make_item(1, num_frames=1)])["inputs"]
        batch["lidar2img"][1], batch["ego_motion"][1] = batch["lidar2img"][0], batch["ego_motion"][0]
        with torch.no_grad():
            first, second = model.compute_bev(batch)
        return float((first - second).std() / first.std())

    assert share(True) > 1.5 * share(False)
