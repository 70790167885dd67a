"""Prepared weights are complete before a call on another CUDA stream can read them; a mock takes the GPU's place."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

import atrous
from atrous.backends import prepack
from atrous.core import streams
from atrous.core.spec import Spec
from atrous.fusion.execution import constants

GPUS = [torch.device("cuda", number) for number in range(2)]


def on(device):
    return SimpleNamespace(device=device, is_cuda=device.type == "cuda")


@pytest.fixture
def gpu(monkeypatch):
    """gpu.capturing and gpu.initialized say what torch answers; gpu.waited has the devices of the streams."""
    state = SimpleNamespace(capturing=False, initialized=True, waited=[])

    def current_stream(device):
        return SimpleNamespace(synchronize=lambda: state.waited.append(device))

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: state.initialized)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    return state


def test_the_current_stream_of_each_gpu_is_waited_for_once(gpu):
    streams.wait_for([on(device) for device in (*GPUS, torch.device("cpu"), *GPUS)])
    assert sorted(gpu.waited, key=str) == GPUS


@pytest.mark.parametrize("change", [{"capturing": True}, {"initialized": False}])
def test_there_is_no_wait_in_a_capture_or_without_a_gpu(gpu, change):
    vars(gpu).update(change)
    streams.wait_for([on(device) for device in GPUS])
    assert not gpu.waited


def test_tensors_of_a_cpu_need_no_wait(gpu):
    streams.wait_for([torch.zeros(1)])
    streams.wait_for([])
    assert not gpu.waited


def test_a_packed_weight_is_complete_before_it_is_stored(monkeypatch):
    weights, stored = prepack.PrepackedWeights(), []
    backend = mock.Mock(pack=lambda input, weight, spec: weight + 1, pack_key=lambda *_: 0)
    monkeypatch.setattr(prepack, "wait_for", lambda values: stored.append((values, len(weights.entries))))
    x, w = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 1, 1)
    for _ in range(2):
        weights.bind(backend)(x, w, None, Spec(), None)
    (([packed], entries),) = stored  # once, before there is an entry
    assert torch.equal(packed, w + 1) and entries == 0 and len(weights.entries) == 1


def test_prepared_values_are_complete_before_a_call_uses_them(monkeypatch):
    waited = []
    monkeypatch.setattr(constants, "wait_for", lambda values: waited.append((prepared.versions, list(values))))
    source = torch.zeros(2)
    prepared = constants.Prepared(lambda x: [x + 1], (source,))
    prepared.refresh(7)
    ((before, [value]),) = waited
    assert before == -1 and torch.equal(value, source + 1) and prepared.versions == 7


def test_a_frozen_model_waits_once_and_again_after_a_change(monkeypatch):
    waited = []
    monkeypatch.setattr(constants, "wait_for", waited.append)
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval()
    frozen, x = atrous.fuse(layer, freeze=True), torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        for expected in (1, 1, 2):
            if expected == 2:
                next(frozen.parameters()).mul_(2)
            frozen(x)
            assert len(waited) == expected
