"""Autocast, gradient and inference modes, around a call and inside a forward, and forwards that ask for them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from faults import always_gradients, ignores_autocast, never_gradients, stale
from outcomes import assert_alike, equal_models
from pairs import image, written
from variants import SHARED, catches, layers

import atrous


def autocast(dtype=torch.bfloat16, enabled=True):
    return torch.autocast("cpu", dtype, enabled=enabled)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": autocast,
    "autocast off": lambda: autocast(enabled=False),
    "fp16": lambda: autocast(torch.float16),
}


def around(names):
    stack = contextlib.ExitStack()
    for name in names:
        stack.enter_context(AROUND[name]())
    return stack


ORDERS = [
    ("no_grad",), ("inference_mode",), ("enable_grad",), ("autocast",), ("no_grad",), ("autocast", "inference_mode"),
    ("autocast", "autocast off"), ("fp16",), ("autocast",),
]  # fmt: skip


def modes_agree(make, forward, orders, training, dtype=torch.float32):
    """Compares one fused copy with the plain model in each of these modes, in turn."""
    models = tuple(model.to(dtype) for model in equal_models(written(forward), training))
    fused, plain = make.pair(models)
    for names in orders:
        x = image(batch=3, dtype=dtype)
        grad = not set(names) & {"no_grad", "inference_mode"}
        low = bool({"autocast", "fp16"} & set(names)) or forward.__name__.startswith("autocast")
        with around(names):
            assert_alike(fused, plain, x, gradients=grad, tolerance=0.1 if low else None)
    return fused


def ordinary(s, x):
    return s.second(s.first(x), x)


@catches(ignores_autocast, training=True, gates=("fused-eval",))
def test_around_a_call(make, training):
    """A residual of fp32 under autocast promotes the sum, so that the layer's dtype is not the convolution's."""
    fused = modes_agree(make, ordinary, ORDERS, training)
    assert layers(fused)


def layers_alone(s, x):
    """Without a residual, every layer is of one dtype under autocast."""
    return s.relu(s.bn2(s.conv2(s.first(x))))


@catches(ignores_autocast, training=True, gates=("frozen", "fused-eval"))
def test_autocast_around_layers_of_one_dtype(make, training):
    fused = modes_agree(make, layers_alone, [("autocast",), ("autocast", "no_grad")], training)
    assert layers(fused) == {"conv+bn+relu": 2}


def autocast_inside(s, x):
    with autocast():
        y = s.first(x)
    return s.second(y.float(), x)


def autocast_off_inside(s, x):
    y = s.first(x)
    with autocast(enabled=False):
        return s.second(y.float(), x.float())


def autocast_in_a_layer(s, x):
    """The convolution is inside, its BatchNorm outside."""
    with autocast():
        z = s.conv1(x)
    return s.second(s.relu(s.bn1(z)).float(), x)


def autocast_off_around_a_product(s, x):
    """Between layers, operators that autocast would cast."""
    y = s.first(x)
    with autocast(enabled=False):
        z = y.float().mean((2, 3)) @ s.conv2.weight[:, :4, 0, 0].float()
    return s.second(y, x), z


def no_grad_inside(s, x):
    with torch.no_grad():
        y = s.first(x)
    return s.second(y, x)


def no_grad_in_a_layer(s, x):
    with torch.no_grad():
        z = s.conv1(x)
    return s.second(s.relu(s.bn1(z)), x)


def enable_grad_inside(s, x):
    with torch.no_grad():
        y = s.first(x)
        with torch.enable_grad():
            z = s.second(y, x)
        return z + s.first(x).mean()


def set_grad_inside(s, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = s.first(x)
    torch.set_grad_enabled(before)
    return s.second(y, x)


def a_decorator(s, x):
    @torch.no_grad()
    def target(x):
        return s.first(x)

    return s.second(target(x), x)


def inference_inside(s, x):
    with torch.inference_mode():
        y = s.first(x)
    return s.second(y.clone(), x)


def detached(s, x):
    return s.second(s.first(x).detach(), x)


INSIDE = [autocast_inside, autocast_off_inside, autocast_off_around_a_product, autocast_in_a_layer,
          no_grad_inside, no_grad_in_a_layer,
          enable_grad_inside, set_grad_inside, a_decorator, inference_inside, detached]  # fmt: skip


@pytest.mark.parametrize("forward", INSIDE, ids=lambda forward: forward.__name__)
@catches(stale, training=True, gates=("frozen", "fused-eval"))
def test_inside_a_forward(make, training, forward):
    orders = [("enable_grad",), ("autocast",)]
    assert layers(modes_agree(make, forward, orders, training))


QUESTIONS = {
    "is_grad_enabled": lambda s, x: torch.is_grad_enabled(),
    "is_autocast_enabled": lambda s, x: torch.is_autocast_enabled("cpu"),
    "autocast dtype": lambda s, x: torch.get_autocast_dtype("cpu") == torch.bfloat16,
    "is_inference_mode": lambda s, x: torch.is_inference_mode_enabled(),
    "is_tracing": lambda s, x: torch.jit.is_tracing() or torch.jit.is_scripting(),
    "requires_grad": lambda s, x: x.requires_grad,
    "grad_fn": lambda s, x: s.first(x).grad_fn is not None,
    "training": lambda s, x: s.training and s.bn1.training,
    "dtype": lambda s, x: s.first(x).dtype == torch.bfloat16,
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
@catches(always_gradients, gates=("frozen", "fused-train"))
def test_a_forward_that_asks(make, training, ask):
    """The answer is the plain model's, and so is the branch that is taken."""

    def forward(s, x):
        answer = ask(s, x)
        y = s.first(x)
        return s.second(torch.sin(y) if answer else torch.cos(y), x), answer

    orders = [("enable_grad",), ("no_grad",), ("autocast",), ("inference_mode",)]
    modes_agree(make, forward, orders, training)


def test_is_compiling_is_true_in_a_fused_forward():
    """A difference from the plain model: see docs/differences.md."""

    def forward(s, x):
        return s.first(x), torch.compiler.is_compiling()

    model = written(forward)()
    assert atrous.fuse(model)(image(dtype=torch.float32))[1] is True
    assert model(image(dtype=torch.float32))[1] is False


@catches(never_gradients, variants=SHARED)
def test_training_and_eval_in_turn(make):
    fused, plain = make.pair(equal_models(written(ordinary)))
    for training in (False, True, False, True, True):
        for model in (fused, plain):
            model.train(training)
        with torch.set_grad_enabled(training):
            assert_alike(fused, plain, image(), gradients=training)
    for model in (fused, plain):  # some children in one mode, the rest in the other
        model.bn1.eval()
    assert_alike(fused, plain, image())
