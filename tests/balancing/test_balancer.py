"""The base balancer: the plain sum, without state."""

import pytest
import torch

from perception.balancing import Balancer


def test_the_plain_sum() -> None:
    losses, present = torch.tensor([2.0, 0.0]), torch.tensor([True, False])
    balancer = Balancer()
    assert balancer.weigh(losses, present).tolist() == [1, 1]
    assert balancer.combine(losses, present, None).tolist() == [1, 1]
    assert not balancer.needs_gram


def test_a_foreign_state_is_refused() -> None:
    balancer = Balancer()
    balancer.load_state_dict(balancer.state_dict())
    with pytest.raises(ValueError, match="keeps no state, but the checkpoint has"):
        balancer.load_state_dict({"ema": 1})
