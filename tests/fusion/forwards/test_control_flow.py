"""Forwards that take a branch: on values, sizes, types and state; loops, errors, printing, inheritance."""

from __future__ import annotations

import functools
import logging
import math
import warnings

import pytest
import torch
from faults import as_list, scales, stale, swallows_errors, traced
from outcomes import agree, equal_models, error_of
from pairs import BOTH, Pair, image, written
from variants import SHARED, catches, layers


def on_values(s, x):
    return s.second(s.first(x), x) if x.sum() > 0 else s.second(x, s.first(x))


def on_an_item(s, x):
    y = s.first(x)
    return s.second(y * (2.0 if y.max().item() > 1.0 else 0.5), x)


def counted_loop(s, x):
    y = x
    for _ in range(int(x.abs().mean() * 2) + 1):
        y = s.first(y) + x
    return s.second(y, x)


def while_loop(s, x):
    y, rounds = s.first(x), 0
    while y.norm() > 10.0 and rounds < 3:
        y, rounds = s.second(y * 0.5, x * 0.1), rounds + 1
    return y * rounds


def early_return(s, x):
    y = s.first(x)
    if float(x[0, 0, 0, 0]) > 0:
        return y
    return s.second(y, x)


def on_sizes(s, x):
    y = s.first(x)
    if x.shape[0] > 2 and x.size(2) % 2 == 0:
        y = y.flip(0)
    return s.second(y, x) / math.sqrt(x.shape[-1])


def on_layout(s, x):
    y = s.first(x)
    return s.second(y if x.is_contiguous() else y * 2, x)


def on_a_mask(s, x):
    """The number of elements depends on values."""
    y = s.second(s.first(x), x)
    return y, y[y > 0].sum() * len(torch.nonzero(y[0, 0] > 0).tolist())


BRANCHES = [on_values, on_an_item, counted_loop, while_loop, early_return, on_sizes, on_layout, on_a_mask]


@pytest.mark.parametrize("forward", BRANCHES, ids=lambda forward: forward.__name__)
@catches(traced, gates=("frozen", "fused-train"))
def test_branches(make, training, forward):
    fused, plain = make.pair(equal_models(written(forward), training))
    for x in (image().abs(), -image().abs(), image(3) * 3, image(2).to(memory_format=torch.channels_last) * 0.1):
        agree(fused, plain, x)
        agree(fused, plain, -x)
    assert layers(fused)


def on_plain_types(s, x):
    y = s.first(x)
    if torch.jit.isinstance(y, torch.Tensor) and not torch.jit.isinstance(y, (int, str)):
        y = y * (2.0 if torch.jit.isinstance(x.shape[0], int) else 0.5)
    return s.second(y, x)


def on_a_container(s, x):
    y = [s.first(x)]
    if torch.jit.isinstance(y, list[torch.Tensor]) and not torch.jit.isinstance(y, list[int]):
        y += [x]
    return s.second(*y)


@pytest.mark.parametrize("forward", [on_plain_types, on_a_container], ids=lambda forward: forward.__name__)
@catches(scales, gates=("frozen", "fused-train"))
def test_isinstance_of_torchscript(make, training, forward):
    """MONAI's networks ask so for a tensor. Dynamo does not trace it by itself."""
    fused, plain = make.pair(equal_models(written(forward), training))
    agree(fused, plain, image())
    assert layers(fused) and (make.plain or forward is on_a_container or not fused.fusion_report.breaks)


@catches(swallows_errors, gates=("frozen", "fused-train"))
def test_isinstance_of_torchscript_refuses_a_bare_list(make, training):
    fused, plain = make.pair(
        equal_models(written(lambda s, x: s.first(x) if torch.jit.isinstance([x], list) else x), training)
    )
    assert error_of(fused, image()) is error_of(plain, image()) is RuntimeError


@catches(scales, gates=("frozen", "fused-train"))
def test_an_error_that_the_forward_catches(make, training):
    """Dynamo refuses such a forward: it runs plain, and the report says so."""

    def forward(s, x):
        y = s.first(x)
        try:
            y = y.view(x.shape[0], 7, -1)
        except RuntimeError:
            y = y * 2
        return s.second(y, x)

    fused, plain = make.pair(equal_models(written(forward), training))
    agree(fused, plain, image())
    assert layers(fused) or fused.fusion_report.plain_calls


class Base(Pair):
    def embed(self, x):
        return self.first(x)

    @property
    def scale(self):
        return 2.0 if isinstance(self, Derived) else 1.0

    def forward(self, x, *, twice=False):
        return self.second(self.embed(x) * self.scale, x)


class Derived(Base):
    def embed(self, x):
        return super().embed(x) + 1

    def forward(self, x, twice=False):
        y = super().forward(x)
        if type(self).__name__.endswith("Derived") and twice:
            y = Base.forward(self, y) + self.helper(y)
        return y

    @staticmethod
    def helper(y):
        return functools.partial(torch.clamp, min=0.1)(y)


@catches(stale, variants=SHARED)
def test_inheritance(make):
    """super(), properties, static methods, the name of the class; a method that is replaced later."""
    fused, plain = make.pair(equal_models(Derived))
    for twice in (False, True, False):
        agree(fused, plain, image(), twice=twice)
    for model in (fused, plain):
        model.embed = lambda x, model=model: model.first(x) - 1
    agree(fused, plain, image())
    assert layers(fused)


@catches(swallows_errors, gates=("frozen",))
def test_errors_of_a_forward(make):
    """An error that a forward raises comes out as it is; the next call computes as if nothing had been."""

    class Refused(ValueError):
        pass

    def forward(s, x, how=None):
        y = s.first(x)
        if how == "raise":
            raise Refused(f"batch of {x.shape[0]}")
        if how == "assert":
            assert x.shape[0] == 77, "never"
        if how == "values" and x.sum() < 1e9:
            raise KeyError("values")
        if how == "shape":
            y = y @ torch.ones(99, 2, dtype=y.dtype)
        if how == "index":
            y = [y][3]
        if how == "attribute":
            y = s.missing
        return s.second(y, x)

    fused, plain = make.pair(equal_models(written(forward)))
    agree(fused, plain, image())
    for how in ("raise", "assert", "values", "shape", "index", "attribute"):
        for _ in range(2):
            kind = error_of(plain, image(), how)
            assert kind is not None and error_of(fused, image(), how) is kind, how
    with pytest.raises(Refused, match="batch of 2"):
        fused(image(), "raise")
    with pytest.raises(RuntimeError) as theirs:
        plain(image(channels=3))
    with pytest.raises(RuntimeError) as ours:
        fused(image(channels=3))
    assert type(ours.value) is type(theirs.value) and str(theirs.value) in str(ours.value)
    agree(fused, plain, image())
    assert layers(fused) == BOTH


@catches(swallows_errors)
def test_output_warnings_and_logs(make, capsys, caplog):
    """They appear at every call."""

    def forward(s, x):
        print("forward", x.shape[0])
        warnings.warn("the forward's warning", stacklevel=1)
        logging.getLogger("model").warning("the forward's log")
        return s.second(s.first(x), x)

    fused, plain = make.pair(equal_models(written(forward)))
    for _ in range(3):
        capsys.readouterr(), caplog.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad():
                fused(image())
        assert capsys.readouterr().out == "forward 2\n"
        assert [str(w.message) for w in caught if "forward's" in str(w.message)] == ["the forward's warning"]
        assert [record.message for record in caplog.records if record.name == "model"] == ["the forward's log"]
    agree(fused, plain, image())
    assert layers(fused)


@catches(as_list, training=True, gates=("frozen", "fused-train"))
def test_a_generator_as_forward(make, training):
    """Nothing of it runs before its first value is taken. It runs plain, and the report says so."""

    def forward(s, x):
        y = s.first(x)
        yield y
        yield s.second(y, x)

    fused, plain = make.pair(equal_models(written(forward), training))
    x = image()
    with torch.no_grad():
        for take in (1, 2):
            results = [[y for _, y in zip(range(take), model(x))] for model in (fused, plain)]
            torch.testing.assert_close(*results, rtol=0, atol=1e-9)
            counts = [[m.bn1.num_batches_tracked, m.bn2.num_batches_tracked] for m in (fused, plain)]
            assert counts[0] == counts[1]
    assert make.plain or fused.fusion_report.plain_calls
