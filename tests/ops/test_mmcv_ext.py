"""The stand-in as a module: what it offers and what it says about the rest."""

import pytest
import torch
from mmcv.ops import carafe_naive, get_compiler_version, get_compiling_cuda_version

import perception.ops
from perception.ops import mmcv_ext
from perception.ops.mmcv_finder import uses_fallback


def test_all_names_are_functions_with_docstrings():
    for name in mmcv_ext.__all__:
        assert callable(getattr(mmcv_ext, name))
        assert getattr(mmcv_ext, name).__doc__


def test_missing_op_raises_only_when_called():
    op = mmcv_ext.some_op_forward
    with pytest.raises(NotImplementedError, match="'some_op_forward' needs mmcv's compiled extension.*wheel"):
        op(torch.zeros(1), flag=True)


@pytest.mark.skipif(not uses_fallback(), reason="a compiled mmcv is installed")
def test_missing_op_reached_through_mmcv():
    with pytest.raises(NotImplementedError, match="'carafe_naive_forward'"):
        carafe_naive(torch.zeros(1, 4, 2, 2), torch.zeros(1, 25, 4, 4), 5, 1, 2)


@pytest.mark.skipif(not uses_fallback(), reason="a compiled mmcv is installed")
def test_environment_report():
    assert get_compiling_cuda_version() == "not available"
    assert "plain torch" in get_compiler_version()


def test_python_protocol_names_are_absent():
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = mmcv_ext.__wrapped__


def test_unknown_name_in_ops():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = perception.ops.nothing
