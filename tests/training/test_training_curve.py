"""bench.commands.training_curve in short: a fused model's losses are as close to fp64's as the plain model's."""

import functools

import pytest
import torch
from torch import nn

from bench.commands import training_curve
from bench.commands.training_curve import PRECISIONS

STEPS, SEEDS = 20, range(5)
# Fused over eager, the median over steps and seeds of |loss - fp64's|. Of 1000 draws of five from 24 seeds one was
# above 2 in training, none above 2.3 for the fewer losses of held-out images.
LIMITS = {"training": 2.0, "held out": 3.0}

pytestmark = pytest.mark.usefixtures("one_thread")


def above(fault=lambda model: None):
    """(precision, name) -> ratio, of those above their limit."""
    pytest.importorskip("sklearn")
    make = functools.partial(training_curve.network, 4)
    rows = training_curve.curves(make, training_curve.digits(), STEPS, SEEDS, fault)
    assert all(row["curves"]["fused"]["training"][-1] < 1.8 < row["curves"]["fused"]["training"][0] for row in rows)
    ratios = {(name, kind): r for name in PRECISIONS for kind, r in training_curve.ratios(rows, name).items()}
    return {key: ratio for key, ratio in ratios.items() if ratio > LIMITS[key[1]]}


def test_fused_is_as_close_to_fp64_as_eager():
    assert not above()


def wrong_momentum(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.11


def drops_slope_gradients(model):
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.weight.register_hook(torch.zeros_like)


def scales_gradients(model):
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: 1.001 * grad)


FAULTS = {
    wrong_momentum: {("fp32", "held out")},
    drops_slope_gradients: {("fp32", "training"), ("fp32", "held out")},
    scales_gradients: {("fp32", "training"), ("fp32", "held out")},
}


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_above_the_limit(fault):
    assert FAULTS[fault] <= above(fault).keys()
