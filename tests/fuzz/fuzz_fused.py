"""Checks a fuzzer's model: its fused or frozen copy against the plain model called the same way, and that in fp64."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter

import torch
from fuzz_check import counted
from fuzz_models import Model
from outcomes import assert_same, outcome
from torch import Tensor

import atrous
from atrous import testing

RATIO = 2.0  # allowed multiple of the plain model's error, root mean square: a tensor may have one element
# Errors that are allowed whatever the plain model's are, relative to the root mean square: some roundings of each
# layer, and in fp64, where the plain model is the truth, what assert_same allows.
RELATIVE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2**-7}
ANY = 1e6  # a tolerance with which assert_same compares all but the values


def check_model(case: Model) -> dict[str, Counter[str]]:
    """Raises an error if the copy's results are wrong; returns counts of the operators."""
    torch.compiler.reset()  # Dynamo compiles the code of one class eight times only
    plain, x = case.build()
    if case.frozen:
        plain.requires_grad_(False)
    fused = atrous.fuse(copy.deepcopy(plain), backend=case.backend, freeze=case.frozen, recompute=case.recompute)
    exact = copy.deepcopy(plain).double()
    with contextlib.nullcontext() if case.gradients else torch.no_grad():
        truth = outcome(exact, x.double(), gradients=case.gradients)
        expected, actual = (outcome(model, x, gradients=case.gradients) for model in (plain, fused))
        with counted() as operators:
            outcome(fused, x, gradients=case.gradients)
    kept = [name for name in expected if not (case.predicted_strides and name.startswith("strides"))]
    assert_same(*({name: each[name] for name in kept} for each in (actual, expected)), ANY)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert_near(actual[name], value, truth[name], name)
    report = fused.fusion_report
    assert not report.plain_calls, report
    # BatchNorm keeps the strides of a transposed map of one channel, as no operator of ours does
    refused = any("strides of its own" in str(layer.reason) for graph in report.graphs for layer in graph.sites)
    assert report.counts[0] or refused or not any(block.fusible for block in case.blocks), report
    return {"operators": operators}


def assert_near(value: Tensor, plain: Tensor, exact: Tensor, name: str) -> None:
    """Asserts an error of at most RATIO times the plain model's, or RELATIVE.

    Raises testing.OverBudget for a finite error: other values would not repeat a rounding that changes the sign of an
    activation's input.
    """
    if not value.is_floating_point():
        assert torch.equal(value, plain), f"{name}: expected {plain}, got {value}"
        return
    error, plains = (rms(result.double() - exact.double()) for result in (value, plain))
    budget = max(RATIO * plains, RELATIVE[value.dtype] * max(1.0, rms(exact.double())))
    assert error < torch.inf or not exact.isfinite().all(), f"{name}: expected finite values"
    if error > budget:
        raise testing.OverBudget(f"{name}: error {error:.3g} against fp64, budget {budget:.3g}, plain {plains:.3g}")


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item() if error.numel() else 0.0
