"""Calls in one thread while another compiles: torch.compiler.is_compiling() is then true in both."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest
import torch
from thread_cases import DTYPES, Tensors, net, pictures
from torch._dynamo import convert_frame

import atrous
from atrous.core.torch_compat import is_compiling


@contextlib.contextmanager
def another_thread_compiles():
    """Inside, another thread has Dynamo's lock and has set torch's flag; yields what is_compiling() tells it."""
    answers, begun, over = [], threading.Event(), threading.Event()

    def compile_for_long():
        with convert_frame.compile_lock:
            torch.compiler._is_compiling_flag = True
            try:
                answers.append(is_compiling())
                begun.set()
                over.wait(60)
            finally:
                torch.compiler._is_compiling_flag = False

    thread = threading.Thread(target=compile_for_long)
    thread.start()
    begun.wait(60)
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def test_the_flag_is_a_threads_own():
    assert not is_compiling()
    with another_thread_compiles() as other:
        assert torch.compiler.is_compiling() and not is_compiling()
    assert other == [True] and not is_compiling()


def test_an_export_is_seen_without_the_lock(monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert is_compiling()


@torch.no_grad()
@pytest.mark.skipif(atrous.ops.library_error is not None, reason="in plain torch a fused model has the plain bits")
@pytest.mark.parametrize("freeze", [False, True])
def test_a_fused_model_runs_its_graph(freeze):
    draw = Tensors(torch.float32)
    model, x = net(draw), pictures(draw)[0]
    fused = atrous.fuse(model, freeze=freeze)
    expected = fused(x)
    assert not torch.equal(expected, model(x))  # so that the plain model is seen
    with another_thread_compiles():
        assert torch.equal(fused(x), expected)


@pytest.mark.parametrize("size", [8, 40], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_running_statistics_are_updated_once(monkeypatch, dtype, size):
    """Compilations begin and end while a layer runs: each question is answered in another way."""
    draw = Tensors(dtype)
    z, running = draw(2, 16, size, size), [torch.zeros(16), torch.ones(16)]
    expected = [tensor.clone() for tensor in running]
    atrous.bn_act(z.clone().requires_grad_(), *expected, training=True)
    for pattern in itertools.product((True, False), repeat=5):
        actual, answers = [tensor.clone() for tensor in running], itertools.cycle(pattern)
        with another_thread_compiles(), monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda answers=answers: next(answers))
            atrous.bn_act(z.clone().requires_grad_(), *actual, training=True)
        assert all(map(torch.equal, actual, expected))
