"""Tests of the table of CUDA convolution tiles: a tile is selected during its call alone, and exists in csrc/cuda."""

import re
from pathlib import Path

import launches
import pytest
import torch

import atrous
from bench.gpu import conv_tiles
from bench.tables.layers import FusedLayer

ROOT = Path(__file__).parents[3]

LAYER = FusedLayer("layer", 1, 8, 16, 3, 1, 6, residual=True)


@pytest.fixture
def named(monkeypatch):
    """The names passed to the operator _conv_tile; the last one is the current tile."""
    names = [""]
    monkeypatch.setattr(torch.ops.atrous, "_conv_tile", names.append, raising=False)
    return names


def test_a_row_has_every_tile(monkeypatch, named):
    calls, real = [], atrous.conv_bn_act

    def conv_bn_act(**arguments):
        calls.append((arguments["backend"], named[-1]))
        return real(**arguments | {"backend": "library"})

    monkeypatch.setattr(atrous, "conv_bn_act", conv_bn_act)
    row = conv_tiles.measure(LAYER, 2, torch.device("cpu"), torch.float32)
    assert list(row["ms"]) == [*conv_tiles.TILES, "predicted", "library"] and min(row["ms"].values()) > 0
    assert row["refused"] == {}
    assert set(calls) == {*(("native", tile) for tile in conv_tiles.TILES), ("native", ""), ("library", "")}


def test_a_tile_that_is_refused_has_a_reason_and_no_time(monkeypatch, named):
    real, failure = atrous.conv_bn_act, "wgmma-256x128 cannot compute this convolution: wgmma is in libraries for 9.0a"

    def conv_bn_act(**arguments):
        if named[-1] == "wgmma-256x128":
            raise RuntimeError(failure)
        return real(**arguments | {"backend": "library"})

    monkeypatch.setattr(atrous, "conv_bn_act", conv_bn_act)
    measure = lambda: conv_tiles.measure(LAYER, 2, torch.device("cpu"), torch.float32)  # noqa: E731
    row = measure()
    assert row["refused"] == {"wgmma-256x128": failure} and named[-1] == ""
    assert list(row["ms"]) == list(row["tflops"]) == [*conv_tiles.TILES[1:], "predicted", "library"]
    failure = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match=failure):
        measure()


def test_a_wrong_tile_is_named(monkeypatch, named):
    real = atrous.conv_bn_act

    def conv_bn_act(**arguments):
        y = real(**arguments | {"backend": "library"})
        return y + (named[-1] == "mma-64x64")

    monkeypatch.setattr(atrous, "conv_bn_act", conv_bn_act)
    with pytest.raises(AssertionError, match="^mma-64x64: "):
        conv_tiles.measure(LAYER, 2, torch.device("cpu"), torch.float32)


def test_the_tiles_are_those_of_the_cost_model():
    source = (ROOT / "csrc/cuda/conv/cost_model.h").read_text()
    assert re.findall(r'\{"((?:wg)?mma-\d+x\d+)"', source) == list(conv_tiles.TILES)
    assert conv_tiles.TILES == launches.TILES[1:]
