import pytest
import torch

from atrous import conv_bn_act, dispatch, ops
from atrous.spec import Spec

X, W = torch.randn(1, 4, 8, 8), torch.randn(8, 4, 3, 3)


def test_auto_takes_native_where_it_is_built():
    assert dispatch.choose("auto", X, W, Spec()).name == ("native" if ops.library_loaded else "library")


@pytest.mark.skipif(not dispatch.available("triton"), reason="the row triton runs here")
def test_a_named_row_that_cannot_run_lists_its_reasons():
    with pytest.raises(
        RuntimeError,
        match=r"(?s)backend='triton' cannot run.*triton: no CUDA device.*input: expected a CUDA.*got torch.float64",
    ):
        conv_bn_act(X.double(), W.double(), backend="triton")


def test_an_unknown_row_lists_the_known():
    with pytest.raises(ValueError, match="backend: expected one of auto, library, native, triton, got 'cudnn'"):
        conv_bn_act(X, W, backend="cudnn")


def test_a_named_row_refuses_what_it_has_no_backward_for():
    with pytest.raises(RuntimeError, match="native: it has no backward yet"):
        conv_bn_act(X, W.clone().requires_grad_(), backend="native")
    with pytest.raises(RuntimeError, match="native: it has no backward yet"):
        conv_bn_act(X, W, training=True, backend="native")


@pytest.mark.parametrize("name", dispatch.rows())
def test_available_answers_with_reasons(name):
    assert all(isinstance(reason, str) and reason for reason in dispatch.available(name))
