from unittest import mock

import pytest
import torch

from atrous import conv_bn_act, dispatch, ops
from atrous.backends import library
from atrous.spec import Epilogue, Spec

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


def test_on_a_card_a_frozen_bias_is_the_epilogue_s(monkeypatch):
    """cuDNN's own bias is a pass of its own over the output; a BatchNorm's site keeps it where it was."""
    seen = []
    monkeypatch.setattr(torch, "conv2d", lambda x, w, bias, *geometry: seen.append(bias) or x)
    monkeypatch.setattr(library, "epilogue", lambda z, arguments: arguments)
    monkeypatch.setattr(library, "in_arithmetic_type", lambda run, x, weights, arguments: run(x, weights, arguments))
    card, bias = mock.Mock(is_cuda=True), torch.ones(8)
    assert library.conv_epilogue(card, W, bias, Spec(), Epilogue()).beta is bias and seen == [None]
    norm = Epilogue(mean=torch.zeros(8), var=torch.ones(8))
    assert library.conv_epilogue(card, W, bias, Spec(), norm).beta is None and seen[-1] is bias
