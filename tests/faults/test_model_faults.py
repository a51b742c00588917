"""F7 with the real model: numbers that are not finite anywhere in a forward skip the step, they don't end the run."""

import pytest
import torch

from perception.engine import BalancedOptimWrapper
from perception.engine.step_context import StepContext
from perception.utils import DataError
from tests.models.small import collate, make_item, small_model


def step(model, wrapper, batch, number=1):
    wrapper.begin_step(StepContext(step=number, model=model, data_batch=batch))
    model.train_step(batch, optim_wrapper=wrapper)
    return wrapper.last_step


def poisoned(where):
    batch = collate([make_item(1), make_item(2)])
    values = batch["inputs"][where][1]
    if where == "img":  # uint8 cannot hold NaN; a float image can
        batch["inputs"][where] = [image.float() for image in batch["inputs"][where]]
        values = batch["inputs"][where][1]
    values[-1] = torch.nan
    return batch


@pytest.mark.parametrize("where", ["ego_motion", "img"])
def test_not_finite_input_skips_the_step(where, caplog):
    model = small_model().train()
    wrapper = BalancedOptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    assert not step(model, wrapper, collate([make_item(1), make_item(2)]))["skipped"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    last = step(model, wrapper, poisoned(where), number=2)
    assert last["skipped"]
    assert set(last["non_finite"]["tasks"]) >= {"cls", "box", "velocity"}
    assert last["non_finite"]["sample_tokens"] == ["token1", "token2"]
    assert "step 2: non-finite loss in task cls, box" in caplog.text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not step(model, wrapper, collate([make_item(1), make_item(2)]), number=3)["skipped"]


def test_too_many_in_a_row_end_the_run():
    model = small_model().train()
    wrapper = BalancedOptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3), max_bad_steps=3)
    for number in (1, 2):
        step(model, wrapper, poisoned("ego_motion"), number)
    with pytest.raises(FloatingPointError, match="token1, token2.*3 in a row"):
        step(model, wrapper, poisoned("ego_motion"), 3)


@pytest.mark.parametrize(("column", "value"), [(0, torch.nan), (4, 0.0), (5, -1.0), (6, torch.inf)])
def test_a_bad_ground_truth_box_is_an_error_with_its_sample(column, value):
    model = small_model().train()
    batch = collate([make_item(1), make_item(2)])
    batch["data_samples"][1].gt_instances_3d.bboxes_3d.tensor[3, column] = value
    with pytest.raises(DataError, match=r"ground-truth box 3 is .*\[sample token2\]"):
        model.train_step(
            batch, optim_wrapper=BalancedOptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        )
