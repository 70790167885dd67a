"""Every model of the zoo: what is fused in it is what was counted by hand, and values are the plain model's in fp64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from faults import loses_input_gradients, loses_statistics, scales
from outcomes import assert_alike, equal_models, outcome
from variants import FROZEN, FUSED, INDUCTOR, Variant, epilogues, layers
from zoo import ZOO

NCHW, NHWC = torch.contiguous_format, torch.channels_last
QUICK = ("TorchvisionBasic", "c2f_leaky", "FunctionsAlone")  # those that run through Inductor in make gates


class Case(NamedTuple):
    variant: Variant
    training: bool
    layout: torch.memory_format
    gradients: bool

    @property
    def name(self):
        words = "train" if self.training else "eval", "nchw" if self.layout is NCHW else "nhwc"
        return "-".join([self.variant.name, *words, *(["gradients"] if self.gradients and not self.training else [])])


DEFAULT = [Case(FUSED, True, NCHW, True), Case(FUSED, False, NHWC, False), Case(FROZEN, False, NCHW, False)]
COMPILED = [Case(INDUCTOR, True, NHWC, True), Case(INDUCTOR, False, NCHW, False)]
OTHERS = [
    Case(FUSED, True, NHWC, True), Case(FUSED, False, NCHW, True), Case(FUSED, False, NHWC, True),
    Case(FUSED, False, NCHW, False), Case(FROZEN, False, NHWC, False), Case(FROZEN, False, NCHW, True),
    Case(FROZEN, False, NHWC, True),
]  # fmt: skip


def cases():
    gate = [pytest.mark.gate, pytest.mark.nightly]
    for name in ZOO:
        for case in DEFAULT + COMPILED + OTHERS:
            compiled = case in COMPILED and name in QUICK
            marks = gate[:1] if compiled else [] if case in DEFAULT else gate
            yield pytest.param(name, case, id=f"{name}-{case.name}", marks=marks)


@pytest.mark.parametrize("name, case", cases())
def test_zoo(name, case):
    entry = ZOO[name]
    models = equal_models(entry.build, case.training)
    fused, plain = case.variant.pair(models)
    x = entry.inputs(case.layout)
    strides = not (entry.pixel and case.variant.frozen and case.layout is NHWC)  # docs/differences.md
    if entry.random and case.training:
        assert [tuple(y.shape) for y in tensors(fused(x))] == [tuple(y.shape) for y in tensors(plain(x))]
    elif case.gradients:
        assert_alike(fused, plain, x, strides=strides)
    else:
        with torch.no_grad():
            assert_alike(fused, plain, x, gradients=False, strides=strides)
    seen, expected, report = layers(fused), entry.patterns(case.training), fused.fusion_report
    if entry.once:
        assert set(seen) in [set(patterns) for patterns in expected], report
        return
    assert seen in expected, report
    norms = [layer.fused for layer in report.sites if layer.pattern == "bn"]  # not counted by hand
    counts = report.counts[0] - sum(norms), report.counts[1] - len(norms)
    assert counts in entry.counts(case.training) if seen else report.plain_calls, report
    if not (case.training or case.gradients or case.variant is INDUCTOR):
        with torch.no_grad():
            assert epilogues(fused, x) == seen.total()


def tensors(y):
    return list(y.values()) if isinstance(y, dict) else y if isinstance(y, list) else [y]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_the_plain_model_agrees_with_itself(name, training):
    """Its outputs and gradients are finite and not all 0, or a comparison would show nothing."""
    entry = ZOO[name]
    model, plain = equal_models(entry.build, training)
    x = entry.inputs()
    assert_alike(model, plain, x)
    result = outcome(model, x)
    for key in result.keys() & {"y", "gradient of argument 0"}:
        assert result[key].isfinite().all() and result[key].any(), key


@pytest.mark.parametrize("fault, training", [(scales, False), (loses_input_gradients, True), (loses_statistics, True)])
@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_noticed(name, fault, training):
    model, plain = equal_models(ZOO[name].build, training)
    with pytest.raises(AssertionError):
        assert_alike(fault(model), plain, ZOO[name].inputs())
