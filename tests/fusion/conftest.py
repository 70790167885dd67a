"""The fixtures `make` and `training`: each test runs with fused, frozen and plain copies and with its planted fault."""

import pytest
import torch
from variants import INDUCTOR


def pytest_generate_tests(metafunc):
    """`make` alone: in eval mode by the test's own choice; with `training`: each mode that the copy has."""
    if "make" not in metafunc.fixturenames:
        return
    test = metafunc.function
    variants, fault, gates = test.variants, test.fault, test.gates  # a test without a fault is an error
    if "training" not in metafunc.fixturenames:
        metafunc.parametrize("make", [variant_param(gates, variant) for variant in (*variants, fault[0])])
        return
    modes = [(variant, mode) for variant in variants for mode in (False, True) if not (variant.frozen and mode)]
    cases = [variant_param(gates, *case) for case in (*modes, fault)]
    metafunc.parametrize("make, training", cases)


def variant_param(gates, variant, *mode):
    name = "-".join([variant.name, *("train" if training else "eval" for training in mode)])
    # That tests fail where they should depends on the sources alone, and a third of it is drawn. The rest of what takes
    # long is for a nightly run.
    slow = variant is INDUCTOR or name.startswith(gates)
    marks = [pytest.mark.gate] if slow or variant.plain else []
    marks += [pytest.mark.drawn(3)] if variant.plain else []
    marks += [pytest.mark.nightly] if slow and not variant.plain else []
    return pytest.param(variant, *mode, id=name, marks=marks)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test with a planted fault passes if it fails."""
    make = pyfuncitem.funcargs.get("make")
    if make is None or not make.wrong:
        return (yield)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        yield
    return True


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forgets what earlier tests compiled: Dynamo counts its limit of graphs for each function, and tests have them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
