"""Checks a fuzzer's operator call: its results, again, and the memory around its operands."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import oracle
import torch
import triton_cases as cases
from fuzz_cases import Case
from fuzz_operands import tensors
from fuzz_runs import RUNS
from torch import Tensor

from atrous import testing, tuning
from atrous.triton_kernels.conv import configs


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
def drawn_config(case: Case) -> Iterator[list[str]]:
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
        if case.backend == "triton":
            stack.enter_context(mock.patch.object(configs, "conv_config", config))
            stack.enter_context(mock.patch.object(tuning, "measured", lambda *arguments: None))
        yield chosen


def eager_operands(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The operands with dense vectors: the gradient of batch_norm on a CPU reads between the elements of others."""
    dense = {name: value.detach().contiguous().requires_grad_(value.requires_grad) for name, value in t.items()}
    return {name: dense[name] if value.dim() == 1 else value for name, value in t.items()}


def once(run: Callable, case: Case, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results of one run; restores the running statistics afterwards."""
    before = {name: t[name].clone() for name in ("running_mean", "running_var") if name in t}
    with contextlib.nullcontext() if case.needs else torch.no_grad():
        results = run(case, t)
    for name, value in before.items():
        t[name].copy_(value)
    return results


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the calls of this package's operators, and of Triton's kernels, by name."""
    names: Counter[str] = Counter()
    with torch.autograd.profiler.profile() as profile:
        yield names
    called = (event.name() for event in profile.kineto_results.events())
    names.update(name for name in called if name.startswith("atrous"))


def check_call(case: Case) -> dict[str, Counter[str]]:
    """Raises an error if the results are wrong; returns counts of operators, Triton's configs and known excesses."""
    margins = oracle.Margins()
    case, t = tensors(case, margins)
    ours, plain = RUNS[case.form]
    before = {name: value.detach().clone() for name, value in t.items()}
    with drawn_config(case) as chosen, poisoned():
        results = once(ours, case, t)
        with counted() as operators:
            again = once(ours, case, t)
    with cases.precision(case.precision):
        truth, eager = (once(plain, case, eager_operands(values)) for values in (oracle.wide(t), t))
    assert results.keys() == truth.keys(), f"results: expected {list(truth)}, got {list(results)}"
    known: Counter[str] = Counter()
    for name, value in results.items():
        bounds = {"ratio": testing.RATIO, "relative": budget(case, value)}
        try:
            testing.assert_tensor(value, eager[name], truth[name], name, **bounds)
        except testing.OverBudget:
            reason = known_reason(case, name, operators)
            if not reason:
                raise
            twice = {bound: 2 * number for bound, number in bounds.items()}
            testing.assert_tensor(value, eager[name], truth[name], name, **twice)
            known[f"{name} {reason}"] += 1
        assert torch.equal(value, again[name]), f"{name}: the second call gives other bits"
    if case.form in ("forward", "training") and not relaid(case):
        assert oracle.layout(results["y"]) == oracle.layout(eager["y"]), f"y: strides {results['y'].stride()}"
    for name, value in t.items():
        assert torch.equal(value.detach(), before[name]), f"{name} was changed"
    margins.check()
    return {"operators": operators, "config": Counter(chosen[:1]), "known": known}


def relaid(case: Case) -> bool:
    """True for the strides of docs/differences.md: fp16 maps of one pixel, which torch convolves channel by channel."""
    return case.dtype == "float16" and case.size == (1, 1) and 1 < case.groups == case.channels


def known_reason(case: Case, name: str, operators: Counter[str]) -> str:
    """The reason in docs/differences.md why an error may be up to twice the budget; empty if there is none."""
    low = case.dtype in ("float16", "bfloat16")
    constant = (case.form, case.norm) == ("training", "eval") and case.slope in ("identity", "relu")
    if low and constant and name in ("d weight", "d bn_weight"):
        return "behind constant statistics, in 16 bits"  # rounded once more: autograd/sign.py
    fixed_point = case.dtype == "bfloat16" and "atrous::_winograd_epilogue" in operators
    return "of Winograd's bf16" if fixed_point and name in ("running_mean", "d bn_weight") else ""


def budget(case: Case, value: Tensor) -> float:
    """The error that is allowed whatever eager's is, relative to the largest value.

    Eager in fp64 is the truth itself, so it gives no error scale for sums that cancel: they are allowed the errors of
    fp32. Winograd's operators are allowed those that tests/csrc/test_winograd.py gives each tile.
    """
    arithmetic = torch.float32 if (case.form, case.dtype) == ("training", "float64") else None
    relative = testing.roundings(value.dtype, arithmetic=arithmetic)
    if case.tile is None:
        return relative
    fixed_point = 4e-3 if case.tile[2] and case.dtype != "bfloat16" else 0.0
    return max(relative, fixed_point)
