"""bench/segmenter.py on a small image: the file it writes, and a wrong result."""

import json

import pytest
import torch

from bench import segmenter


def test_it_compares_before_it_times(tmp_path, capsys, monkeypatch):
    file = tmp_path / "segmenter.json"
    whole = segmenter.networks(64)
    monkeypatch.setattr(segmenter, "networks", lambda size: {"with ASPP": whole["with ASPP"]})
    segmenter.main(["--size", "64", "--seconds", "0.1", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["median_ms"].keys() == {"eager", "compiled", "atrous"} and min(row["median_ms"].values()) > 0
    assert "x eager" in capsys.readouterr().out
    monkeypatch.setattr(segmenter, "BOUND", 0.0)
    with pytest.raises(RuntimeError, match="atrous: expected an error of at most 0.0, got"), torch.no_grad():
        segmenter.variants(whole["with ASPP"], torch.randn(1, 3, 64, 64))
