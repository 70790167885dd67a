"""Random numbers and times that a forward asks for are new in each call, and as many as the plain model draws."""

from __future__ import annotations

import random
import time

import numpy
import pytest
import torch
from faults import draws_alike, stops_the_clock
from outcomes import equal_models, seed_all
from pairs import BOTH, image, written
from variants import catches, layers


def numpy_global(s, x):
    return s.second(s.first(x) * numpy.random.rand(), x)


def numpy_generator(s, x):
    return s.second(s.first(x) * s.draws.random(), x)


def python_global(s, x):
    return s.second(s.first(x) * random.random(), x)


def python_generator(s, x):
    return s.second(s.first(x) * s.draws.uniform(0.5, 1.0), x)


def torch_global(s, x):
    return s.second(s.first(x) * torch.rand_like(x), x)


def torch_generator(s, x):
    return s.second(s.first(x) * torch.rand(x.shape, generator=s.draws, dtype=x.dtype), x)


def a_branch(s, x):
    """Stochastic depth by Python's random."""
    y = s.first(x)
    return s.second(y, x) if random.random() < 0.5 else s.second(x, y)


def a_choice(s, x):
    return s.second(random.choice([torch.sin, torch.cos])(s.first(x)), x)


def integers(s, x):
    shift = int(torch.randint(0, 5, ()).item()) + numpy.random.randint(3)
    return s.second(torch.roll(s.first(x), shift, 3), x)


def dropped(s, x):
    """The draws of torch's own functions; Inductor's bernoulli draws those of fp64 in fp32 (test_differences.py)."""
    y = torch.nn.functional.dropout(s.first(x) + 0.0, 0.3, training=True)
    return s.second(y * torch.bernoulli(x.sigmoid().float()), x)


OWN = {
    numpy_generator: lambda: numpy.random.default_rng(3),
    python_generator: lambda: random.Random(3),
    torch_generator: lambda: torch.Generator().manual_seed(3),
}
DRAWS = [numpy_global, python_global, torch_global, a_branch, a_choice, integers, dropped, *OWN]


def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("forward", DRAWS, ids=lambda forward: forward.__name__)
@catches(draws_alike, gates=("frozen", "fused-train"))
def test_draws(make, training, forward):
    prepare = (lambda model: setattr(model, "draws", OWN[forward]())) if forward in OWN else None
    fused, plain = make.pair(equal_models(written(forward, prepare), training))
    x, results = image(), []
    for model in (fused, plain):
        seed_all()
        with torch.set_grad_enabled(training):
            results.append([model(x.clone()).detach() for _ in range(5)] + [states()])
    *ours, our_states = results[0]
    *theirs, their_states = results[1]
    assert len({float(y.sum()) for y in theirs}) > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert our_states == their_states
    if forward is not dropped:
        assert layers(fused) == BOTH if forward not in OWN else layers(fused)


@catches(stops_the_clock)
def test_a_clock(make):
    def forward(s, x):
        return s.second(s.first(x), x), time.perf_counter(), time.time_ns()

    model, _ = equal_models(written(forward))
    fused = make(model)
    for _ in range(3):
        before = time.perf_counter(), time.time_ns()
        with torch.no_grad():
            _, seconds, nanoseconds = fused(image())
        assert before[0] < seconds < time.perf_counter() and before[1] < nanoseconds < time.time_ns()
        time.sleep(0.001)
