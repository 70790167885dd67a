"""Tests of the host time benchmark: its measurements and its budget; no time is asserted: machines may be busy."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: there is nothing to launch", allow_module_level=True)

import host_time  # noqa: E402
import standin  # noqa: E402


def test_every_backend_and_launcher_is_measured(monkeypatch):
    monkeypatch.setattr(host_time, "CALLS", 2)
    before = standin.library().counts["launched"]
    result = host_time.measured(rounds=1)
    assert list(result["backends"]) == ["plain torch", "library", "native", "triton", "triton, the epilogue alone"]
    assert len(result["launches"]) == 8
    assert all(us > 0 for us in (*result["backends"].values(), *result["launches"].values()))
    launched = standin.library().counts["launched"] - before
    assert launched >= (2 + 8) * 2 * 2  # Triton's calls and launches, two of each to warm up and in the round
    assert "plain torch" in host_time.show(result)


def test_calls_over_budget_are_listed():
    result = {
        "backends": {"plain torch": 10.0, "native": 20.0, "triton": 20.1},
        "launches": {"epilogue": 15.0, "statistics": 15.1},
    }
    triton, statistics = host_time.over(result)
    assert triton == "triton 2.01x plain torch, 2x allowed"
    assert statistics == "launch of statistics 15.1 us, 15 allowed"
