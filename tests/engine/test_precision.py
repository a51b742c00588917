"""Training, evaluation and prediction compute in the same number format."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_world

from perception.engine import BalancedOptimWrapper, evaluate, predict, train
from perception.engine.precision import precision_of, resolve_precision


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_forward_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    seen: set[tuple[str, bool]] = set()
    real = toy_world.ToyModel.forward

    def forward(self: Any, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        seen.add((mode, torch.is_autocast_enabled("cpu")))
        return real(self, inputs, data_samples, mode)

    monkeypatch.setattr(toy_world.ToyModel, "forward", forward)
    cfg = toy_world.config(tmp_path / "run", optim_wrapper__precision=precision)
    run = train(cfg)
    expected = precision != "fp32"
    assert seen == {("loss", expected), ("predict", expected)}
    seen.clear()
    evaluate(cfg, run)
    assert seen == {("predict", expected)}
    seen.clear()
    list(predict(cfg, run))
    assert seen == {("predict", expected)}


def test_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_of(None) == "fp32"
    assert precision_of({"precision": "bf16"}) == "bf16"
    assert (
        precision_of(BalancedOptimWrapper(torch.optim.SGD([torch.zeros(1)], lr=1), precision="bf16"))
        == "bf16"
    )
    for has_cuda, has_bf16, capability, expected in (
        (True, True, (8, 0), "bf16"),
        (True, False, (7, 5), "fp16"),
        (True, False, (6, 1), "fp32"),
        (False, True, (8, 0), "fp32"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has=has_cuda: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert resolve_precision("auto") == expected
    with pytest.raises(ValueError, match="allowed: 'fp32', 'bf16', 'fp16', 'auto'"):
        resolve_precision("fp8")
