"""Dropout with cheap masks, and the self-attention that uses them."""

import pytest
import torch
from torch import nn

from perception.models._dropout import Dropout, keep_mask, keep_share
from perception.models.self_attention import SelfAttention


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_share_mean_and_gradient(p):
    torch.manual_seed(0)
    x = torch.full((1001, 333), 2.0, requires_grad=True)
    out = Dropout(p)(x)
    kept = out != 0
    share = keep_share(p)
    assert abs(share - (1 - p)) <= 2**-17
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / share))
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(kept.double().mean() - share) < 4 * deviation
    # Neighbours share a random number; they must not depend on each other.
    flat = kept.flatten()[: x.numel() // 4 * 4].view(-1, 4).double()
    correlation = torch.corrcoef(flat.T) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 4 / len(flat) ** 0.5
    out.sum().backward()
    torch.testing.assert_close(x.grad, kept / share)


def test_seed_decides_and_eval_is_the_identity():
    x, dropout = torch.ones(64, 5), Dropout(0.3)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize(("p", "kept"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_extreme_probabilities_are_torchs(p, kept):
    torch.manual_seed(0)
    assert Dropout(p)(torch.ones(50)).mean() == kept


def test_bad_probability_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.1)


def attentions(dropout: float) -> tuple[nn.MultiheadAttention, SelfAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = SelfAttention(embed_dims=16, num_heads=4, dropout=dropout)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("is_masked", [False, True])
def test_equals_torchs_attention(is_masked):
    theirs, ours = attentions(0.0)
    located, content = torch.randn(2, 2, 7, 16).unbind()
    sees = torch.eye(7, dtype=torch.bool) | (torch.rand(7, 7) > 0.5) if is_masked else None
    expected, _ = theirs(
        located, located, content, attn_mask=None if sees is None else ~sees, need_weights=False
    )
    torch.testing.assert_close(ours(located, content, sees), expected)


def test_no_queries_are_no_error():
    _, ours = attentions(0.4)
    assert ours(torch.randn(2, 0, 16), torch.randn(2, 0, 16)).shape == (2, 0, 16)


@pytest.mark.parametrize("is_masked", [False, True])
def test_dropped_weights_are_those_of_the_mask(is_masked, monkeypatch):
    """With the mask known, the definition in float64 gives the same output and gradients; in pieces of one head too."""
    monkeypatch.setattr("perception.models.self_attention._PIECE", 1)
    theirs, ours = attentions(0.4)
    ours.double()
    located, content = torch.randn(2, 2, 7, 16, dtype=torch.float64).unbind()
    located.requires_grad_()
    sees = torch.eye(7, dtype=torch.bool) | (torch.rand(7, 7) > 0.5) if is_masked else None
    torch.manual_seed(3)
    out = ours(located, content, sees)
    torch.manual_seed(3)
    keep = torch.stack([keep_mask(torch.empty(7, 7, dtype=torch.float64), 0.4) for _ in range(8)])
    weight, bias = ours.in_proj_weight, ours.in_proj_bias
    query, key, value = (
        (x @ weight[16 * i : 16 * i + 16].T + bias[16 * i : 16 * i + 16])
        .unflatten(-1, (4, 4))
        .transpose(1, 2)
        for i, x in enumerate((located, located, content))
    )
    scores = query @ key.transpose(-1, -2) / 2
    if sees is not None:
        scores = torch.where(sees, scores, -torch.inf)
    weights = scores.softmax(-1) * keep.view(2, 4, 7, 7) / keep_share(0.4)
    expected = ours.out_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    gradients = [
        torch.autograd.grad((x * direction).sum(), [located, ours.in_proj_weight], retain_graph=True)
        for x in (out, expected)
    ]
    for mine, right in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, right)
