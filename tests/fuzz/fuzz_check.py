"""Checks a fuzzer's case, and simplifies one that fails."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from unittest import mock

import oracle
import torch
import triton_cases as cases
from fuzz_cases import Case, simpler
from fuzz_operands import tensors
from fuzz_runs import RUNS
from torch import Tensor

from atrous import testing, tuning
from atrous.triton_kernels.conv import configs

DRAWS = 3  # attempts with new values for a case whose results are over budget


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch allocates, also for C++, is NaN until it is written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def drawn_config(case: Case, backend: str) -> Iterator[list[str]]:
    """Makes Triton use the case's config of those that fit a call, instead of the measured or predicted one."""
    chosen: list[str] = []

    def config(key: configs.ConvKey) -> configs.Conv:
        listed = (
            tile._replace(splits=splits, waves=waves)
            for tile in configs.tiles(key) for splits in configs.SPLITS for waves in configs.WAVES
        )  # fmt: skip
        paths: dict[tuple, list[configs.Conv]] = {}  # by code path: each is equally likely
        for fitting in (config for config in listed if not configs.conv_reasons(key, config)):
            paths.setdefault((fitting.descriptors, fitting.splits > 1, fitting.waves > 0), []).append(fitting)
        number, path = divmod(case.config, len(paths))
        candidates = list(paths.values())[path]
        chosen.append(candidates[number % len(candidates)].describe())
        return candidates[number % len(candidates)]

    with cases.precision(case.precision), contextlib.ExitStack() as stack:
        if backend == "triton":
            stack.enter_context(mock.patch.object(configs, "conv_config", config))
            stack.enter_context(mock.patch.object(tuning, "measured", lambda *arguments: None))
        yield chosen


def eager_operands(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The operands with dense vectors: the gradient of batch_norm on a CPU reads between the elements of others."""
    dense = {name: value.detach().contiguous().requires_grad_(value.requires_grad) for name, value in t.items()}
    return {name: dense[name] if value.dim() == 1 else value for name, value in t.items()}


def once(run, case: Case, t: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The results of one run; restores the running statistics afterwards."""
    before = {name: t[name].clone() for name in ("running_mean", "running_var") if name in t}
    with contextlib.nullcontext() if case.needs else torch.no_grad():
        results = run(case, t, backend)
    for name, value in before.items():
        t[name].copy_(value)
    return results


def check(case: Case, backend: str, device: str) -> list[str]:
    """Raises an error if this backend's results are wrong; returns the configs that Triton used.

    A case over its budget is tried with other values first: a fault exceeds it again.
    """
    for values in range(case.values, case.values + DRAWS - 1):
        with contextlib.suppress(testing.OverBudget):
            return check_values(case._replace(values=values), backend, device)
    return check_values(case._replace(values=case.values + DRAWS - 1), backend, device)


def check_values(case: Case, backend: str, device: str) -> list[str]:
    """Checks the case with its own values."""
    margins = oracle.Margins()
    case, t = tensors(case, device, margins)
    ours, plain = RUNS[case.form]
    before = {name: value.detach().clone() for name, value in t.items()}
    with drawn_config(case, backend) as chosen:
        with poisoned():
            results, again = (once(ours, case, t, backend) for _ in range(2))
        truth, eager = (once(plain, case, eager_operands(values), backend) for values in (oracle.wide(t), t))
    assert results.keys() == truth.keys(), f"results: expected {list(truth)}, got {list(results)}"
    # Eager in fp64 is the truth itself, so it gives no error scale for sums that cancel: allow the errors of fp32.
    arithmetic = torch.float32 if (case.form, case.dtype) == ("training", "float64") else None
    for name, value in results.items():
        relative = testing.roundings(value.dtype, arithmetic=arithmetic)
        testing.assert_tensor(value, eager[name], truth[name], name, relative=relative)
        assert torch.equal(value, again[name]), f"{name}: the second call gives other bits"
    if case.form in ("forward", "training"):
        assert oracle.layout(results["y"]) == oracle.layout(eager["y"]), f"y: strides {results['y'].stride()}"
    for name, value in t.items():
        assert torch.equal(value.detach(), before[name]), f"{name} was changed"
    margins.check()
    return chosen


def failure(case: Case, backend: str, device: str, chosen: list[str] | None = None) -> str | None:
    """The error in one line, or None; the configs that Triton used are appended to `chosen`."""
    try:
        used = check(case, backend, device)
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    if chosen is not None:
        chosen += used
    return None


def shrink(case: Case, backend: str, device: str, error: str, tries: int = 60) -> Case:
    """A simpler case that fails in the same way."""
    for simple in simpler(case):
        if tries == 0:
            break
        tries -= 1
        if kind_of(failure(simple, backend, device)) == kind_of(error):
            return shrink(simple, backend, device, error, tries)
    return case


def kind_of(error: str | None) -> str | None:
    """An error without its numbers."""
    return error and re.sub(r"[\d.e+-]+", "", error)
