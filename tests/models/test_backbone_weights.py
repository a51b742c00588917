import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perception.models.backbone_weights import load_backbone
from tests.models.small import small_model


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_loads_and_drops_the_classifier(tmp_path, suffix):
    source, target = net(), net()
    state = {**source.state_dict(), "fc.weight": torch.zeros(2, 2)}
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    load_backbone(target, str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    assert torch.equal(target[0].weight, source[0].weight)


def test_none_starts_from_scratch():
    target = net()
    before = target[0].weight.clone()
    load_backbone(target, None)
    assert torch.equal(target[0].weight, before)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_backbone(net(), str(tmp_path / "none.safetensors"))
    file = tmp_path / "weights.safetensors"
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="SHA-256"):
        load_backbone(net(), str(file), "0" * 64)
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone(net(), str(file))


def test_a_pickle_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"code": print}, file)
    with pytest.raises(ValueError, match="weights.pth holds more than tensors"):
        load_backbone(net(), str(file))


def test_initialising_says_what_the_backbone_starts_from_and_little_more(caplog):
    """MMEngine's own report has two lines for each parameter."""
    model = small_model()
    with caplog.at_level("INFO"):
        model.init_weights()
    assert "the image backbone starts from scratch" in caplog.text
    assert len(caplog.text.splitlines()) < 5
