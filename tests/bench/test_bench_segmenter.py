"""bench/commands/segmenter.py on a small image: the file it writes, and a wrong result."""

import json

import pytest
import torch

from atrous import models
from atrous.models import BasicBlock, ResNet
from bench.commands import segmenter


def test_it_compares_before_it_times(tmp_path, capsys, monkeypatch):
    file = tmp_path / "segmenter.json"
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), output_stride=8, features_only=True, width=8)
    network = models.segmenter(backbone, models.heads.ASPP(64, 8, rates=(2,)), 2).eval()
    monkeypatch.setattr(torch, "compile", lambda model, options: model)  # its C++ compiler takes half a minute
    monkeypatch.setattr(segmenter, "networks", lambda size: {"with ASPP": network})
    segmenter.main(["--size", "64", "--seconds", "0.1", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["median_ms"].keys() == {"eager", "compiled", "atrous"} and min(row["median_ms"].values()) > 0
    assert "x eager" in capsys.readouterr().out
    monkeypatch.setattr(segmenter, "BOUND", 0.0)
    with pytest.raises(RuntimeError, match="atrous: expected an error of at most 0.0, got"), torch.no_grad():
        segmenter.variants(network, torch.randn(1, 3, 64, 64))
