"""The comparison with the official modules: its parts, and what is published of it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from perception.engine.upstream_benchmark import REMEDY, upstream_table
from perception.engine.upstream_benchmark.benchmark import Worker, WorkerError
from perception.engine.upstream_benchmark.inputs import BEV, FEATURES, surround_cameras, write_inputs
from perception.engine.upstream_benchmark.rebatching import plain_deformable_attention, use_rebatching
from perception.engine.upstream_benchmark.worker import Inputs, measure, serve
from perception.models import BEVEncoder
from perception.ops import multi_scale_deformable_attention
from tests.test_tools import run

ROOT = Path(__file__).resolve().parents[2]


def test_rebatching_equals_our_encoder():
    """Two samples, whose cameras see different cells; two levels; history."""
    torch.manual_seed(0)
    options = dict(
        pc_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), bev_h=12, bev_w=10, embed_dims=32, num_layers=2,
        num_levels=2, num_heads=4,
    )  # fmt: skip
    ours, plain = BEVEncoder(**options).eval(), BEVEncoder(**options).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(ours.state_dict())
    use_rebatching(plain)
    features = [torch.randn(2, 6, 32, 8, 13), torch.randn(2, 6, 32, 4, 7)]
    cameras = torch.from_numpy(surround_cameras()).float()
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    arguments = (features, torch.stack([cameras, cameras @ turn]), torch.randn(2, 18), (480, 800))
    history = torch.randn(2, 120, 32)
    expected = ours(*arguments, history)
    torch.testing.assert_close(plain(*arguments, history), expected, atol=1e-5, rtol=0)


def test_plain_attention_is_the_definition():
    torch.manual_seed(0)
    shapes = [(5, 7), (3, 4)]
    value = torch.randn(2, 47, 3, 4, dtype=torch.float64)
    locations = 1.4 * torch.rand(2, 9, 3, 2, 5, 2, dtype=torch.float64) - 0.2
    weights = torch.rand(2, 9, 3, 2, 5, dtype=torch.float64)
    expected = multi_scale_deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(plain_deformable_attention(value, shapes, locations, weights), expected)


def test_cameras_look_around():
    ahead = np.array([0.0, 20.0, -0.3, 1.0])
    for yaw, matrix in zip((0, -55, 55, 180, 110, -110), surround_cameras(), strict=True):
        cos, sin = np.cos(np.deg2rad(yaw)), np.sin(np.deg2rad(yaw))
        turned = np.array([-sin * ahead[1], cos * ahead[1], *ahead[2:]])
        u, v, depth, _ = matrix @ turned
        assert depth == pytest.approx(19.2)
        assert (u / depth, v / depth) == pytest.approx((408, 245))


def test_inputs_repeat_and_hold_the_parity_geometry(tmp_path):
    geometry = tmp_path / "bench_inputs.npz"
    np.savez(geometry, **{"tiny/lidar2img": np.ones((6, 4, 4), np.float32), "can_bus": np.arange(18.0)})
    assert write_inputs(tmp_path / "a.npz", batch=2, geometry=geometry) == geometry.name
    write_inputs(tmp_path / "b.npz", batch=2, geometry=None)
    a, b = Inputs.read(tmp_path / "a.npz", 2), Inputs.read(tmp_path / "b.npz", 1)
    assert a.features.shape == (2, *FEATURES)
    assert a.prev_bev.shape == (2, *BEV)
    assert torch.equal(a.features[:1], b.features)
    assert a.can_bus[1, 17] == 17
    assert a.image_shape == (480, 800)


class ToySide:
    """Counts calls; its decoder fails beyond one sample."""

    def __init__(self):
        self.linear = nn.Linear(256, 10)

    def modules(self):
        return self.linear

    def encoder(self, inputs):
        return inputs.prev_bev + self.linear.weight.mean() + inputs.features.mean()

    def decoder(self, inputs, bev):
        if len(bev) > 1:
            raise RuntimeError("one sample only")
        return self.linear(bev)[None], self.linear(bev)[None]

    def whole(self, inputs):
        return self.decoder(inputs, self.encoder(inputs))

    def official_state(self):
        return self.linear.state_dict()

    def load_official_state(self, state):
        self.linear.load_state_dict(state)

    def to_our_codes(self, codes):
        return -codes


@pytest.fixture(scope="module")
def inputs_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    write_inputs(file, batch=2, geometry=None)
    return file


def test_measure_times_all_modes_and_leaves_no_gradients(inputs_file):
    side, inputs = ToySide(), Inputs.read(inputs_file, 1)
    for part in ("encoder", "decoder", "whole"):
        times = measure(side, inputs, part, is_training=True)
        assert 0 < times["train_forward"] < times["train_forward_backward"]
        assert side.linear.training
        assert measure(side, inputs, part, is_training=False)["eval_forward"] > 0
        assert not side.linear.training
    assert side.linear.weight.grad is None
    assert inputs.features.grad is None


def test_serve_answers_line_by_line(inputs_file, tmp_path):
    weights, outputs = str(tmp_path / "weights.npz"), str(tmp_path / "outputs.npz")
    requests = [
        {"do": "save", "file": weights},
        {"do": "load", "file": weights},
        {"do": "outputs", "batch": 1, "file": outputs},
        {"do": "measure", "batch": 1, "part": "whole", "is_training": False},
        {"do": "measure", "batch": 2, "part": "decoder", "is_training": False},
    ]
    answers = io.StringIO()
    serve(ToySide(), inputs_file, [json.dumps(request) for request in requests], answers)
    *done, timed, failed = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert done == [{}, {}, {}]
    assert set(timed) == {"eval_forward"}
    assert failed == {"error": "RuntimeError: one sample only"}
    with np.load(outputs) as arrays:
        assert np.array_equal(arrays["codes"], -arrays["scores"])


def test_a_side_that_cannot_be_built_says_why(inputs_file, tmp_path):
    with pytest.raises(WorkerError, match="'official' ended: .*(no folder|No module)"):
        Worker("official", inputs_file, 1, [tmp_path])


def test_tool_names_the_remedy(monkeypatch, tmp_path, capsys):
    for words in ([], ["--upstream", tmp_path / "none"]):
        assert run(monkeypatch, "bench_upstream.py", *words) == 2
        assert REMEDY in capsys.readouterr().err
    assert run(monkeypatch, "bench_upstream.py", "--baseline", "rebatching", "--rounds", "0") == 2


@pytest.mark.slow
def test_tool_measures_the_baseline(monkeypatch, tmp_path, capsys):
    out = tmp_path / "result.json"
    words = ["--baseline", "rebatching", "--rounds", "1", "--threads", "1", "--out", out]
    assert run(monkeypatch, "bench_upstream.py", *words) == 0
    result = json.loads(out.read_text())
    assert upstream_table(result) in capsys.readouterr().out
    assert result["failures"] == {}
    assert len(result["rows"]) == 18
    assert len(result["scaling"]) == 9


def test_page_shows_the_committed_result():
    result = json.loads((ROOT / "docs" / "results" / "bench_upstream.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert upstream_table(result) in page
    assert f"on {result['hardware']['cpu']}, {result['threads']} thread" in page
    for value in result["differences"]["official"].values():
        assert f"{value:.1e}" in page
