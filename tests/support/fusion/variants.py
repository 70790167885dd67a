"""The ways in which a test of tests/fusion/ makes a fused copy, and the faults that are planted to show it can fail."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import nn

import atrous


@dataclass(frozen=True)
class Variant:
    """Makes a fused copy of a model: `make(model, ...)` takes what atrous.fuse takes.

    frozen: the copy owns its tensors and is in eval mode. wrong: it has a planted fault, which the test has to find.
    plain: nothing is fused, so that nothing about the report is asserted.
    """

    name: str
    copy: Callable[..., nn.Module]
    frozen: bool = False
    wrong: bool = False
    plain: bool = False

    def __call__(self, model: nn.Module, *args: object, **options: object) -> nn.Module:
        return self.copy(model, *args, **options)

    def pair(self, models: tuple[nn.Module, nn.Module], **options: object) -> tuple[nn.Module, nn.Module]:
        """(a fused copy of the first model, the second model), called the same way: frozen ones have no gradients."""
        model, plain = models
        if self.frozen:
            plain.requires_grad_(False)
        return self(model, **options), plain


def fused(model, *args, **options):
    return atrous.fuse(model, *args, **options)


def frozen(model, *args, **options):
    return atrous.fuse(model, *args, freeze=True, **options)


def inductor(model, *args, **options):
    return atrous.fuse(model, *args, then="inductor", **options)


def itself(model, *args, **options):
    """The model as its own fused copy: one state."""
    return model


def frozen_itself(model, *args, **options):
    """A copy of the model that owns its tensors, as a frozen one does."""
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    plain.train = functools.partial(refuse_training, plain)
    return plain


def refuse_training(model: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        raise RuntimeError("train() of a frozen copy")
    return model


FUSED, FROZEN, INDUCTOR = Variant("fused", fused), Variant("frozen", frozen, True), Variant("inductor", inductor)
PLAIN, PLAIN_FROZEN = Variant("itself", itself, plain=True), Variant("itself frozen", frozen_itself, True, plain=True)


ALL = (FUSED, FROZEN, INDUCTOR, PLAIN, PLAIN_FROZEN)
SHARED = (FUSED, INDUCTOR, PLAIN)  # one state with the model
OWNED = (FROZEN, PLAIN_FROZEN)


def catches(
    fault: Callable, *, training: bool = False, variants: tuple[Variant, ...] = ALL, gates: tuple[str, ...] = ()
) -> Callable:
    """Marks a test by a fault, which is planted in place of fuse() in one more run of the test: that run must fail.

    training: the mode of that run. variants: the copies that the other runs use. gates: those of them that are gates,
    as "frozen" or, in one mode, as "fused-train".
    """

    def mark(test: Callable) -> Callable:
        wrong = Variant(f"wrong: {fault.__name__}", fault, variants is OWNED, wrong=True, plain=True)
        test.variants, test.fault, test.gates = variants, (wrong, training), gates  # type: ignore[attr-defined]
        return test

    return mark


def layers(model: nn.Module) -> object:
    """{pattern: number} of the layers that were fused so far; equal to anything if the copy is a plain model.

    A BatchNorm alone is left out: a training graph may or may not replace it, and nothing is fused into it.
    """
    report = getattr(model, "fusion_report", None)
    if report is None:
        return mock.ANY
    return Counter(layer.pattern for layer in report.sites if layer.fused and layer.pattern != "bn")


def count(model: nn.Module) -> object:
    """(fused, total) of the report; equal to anything if the copy is a plain model."""
    report = getattr(model, "fusion_report", None)
    return mock.ANY if report is None else report.counts


def epilogues(model: nn.Module, *args: object, **kwargs: object) -> object:
    """The number of epilogues that a call runs, as an operator or, a ReLU alone, as relu_ on the convolution's result;
    equal to anything if the copy is a plain model.
    """
    with torch.autograd.profiler.profile() as profile:
        model(*args, **kwargs)
    report = getattr(model, "fusion_report", None)
    if report is None:
        return mock.ANY
    names = [event.name for event in profile.function_events]
    ours = sum(name.startswith("atrous::") and "epilogue" in name for name in names)
    relu_alone = {"conv+relu", "conv+bn+relu"} if report.frozen else {"conv+relu"}
    alone = sum(layer.fused and layer.pattern in relu_alone for layer in report.sites)
    return ours + min(names.count("aten::relu_"), alone)
