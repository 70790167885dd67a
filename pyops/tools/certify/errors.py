"""Errors of the operators against fp64, beside those of plain torch.

    error(t) = sqrt(mean((t - exact)^2)) / sqrt(mean(exact^2))

exact is the same computation in fp64 from the same values. An operator's error in a case is the largest of its results'
(the output, and in training each gradient), and passes up to the larger of 1.25 times plain torch's and half a unit in
the last place of the dtype and 32 of the accumulator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import testing
from ...backends import selection
from ...core import checks
from ...testing import Case
from .operators import GEOMETRY, OPERATORS, Arguments, Operator

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
DRAWS = 6


class Measurement(NamedTuple):
    """An operator, dtype and backend. error, plain and budget_used: of the case that comes nearest to its budget.

    plain: the error of plain torch. refused: why no case ran.
    """

    operator: str
    dtype: str
    backend: str
    cases: int
    error: float | None = None
    plain: float | None = None
    budget_used: float | None = None
    case: str | None = None
    refused: str | None = None

    @property
    def passed(self) -> bool:
        return self.budget_used is None or self.budget_used <= 1.0


def measurements(backends: Sequence[str], device: str, seed: int) -> Iterator[Measurement]:
    """One per operator, dtype and backend. device: of torch. seed: of the values."""
    for operator in OPERATORS:
        for dtype in DTYPES:
            torch.manual_seed(seed)
            measured: dict[str, list[Measurement]] = {backend: [] for backend in backends}
            for case, layout in ((case, layout) for case in operator.cases for layout in LAYOUTS):
                for backend, result in _measure(operator, dtype, case, layout, backends, device).items():
                    measured[backend].append(result)
            for of_backend in measured.values():
                ran = [result for result in of_backend if result.cases]
                yield max(ran or of_backend, key=lambda result: result.budget_used or 0.0)._replace(cases=len(ran))


def _measure(
    operator: Operator, dtype, case: Case, layout, backends: Sequence[str], device: str
) -> dict[str, Measurement]:
    """The measurement of each backend. Values are drawn again where one is over its budget: where u is nearly 0, its
    sign, on which gradients depend, is a matter of rounding; a fault is one in every draw."""
    best: dict[str, Measurement] = {}
    for _ in range(DRAWS):
        left = [backend for backend in backends if backend not in best or not best[backend].passed]
        if not left:
            break
        arguments = testing.arguments(case, dtype, device, layout)
        plain, exact = operator.plain(arguments), operator.plain(testing.convert(arguments, torch.float64))
        for backend in left:
            reason = _refusal(operator, backend, arguments)
            if reason:
                best[backend] = Measurement(operator.name, _name(dtype), backend, 0, refused=reason)
                continue
            result = _measurement(operator, dtype, backend, case, operator.run(backend, arguments), plain, exact)
            best[backend] = min(best.get(backend, result), result, key=lambda one: one.budget_used or 0.0)
    return best


def _refusal(operator: Operator, backend: str, arguments: Arguments) -> str:
    input, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    if not operator.convolves:
        return "; ".join(selection.reasons(backend, input))
    spec, _ = checks.convolution(input, weight, bias, *(arguments[name] for name in GEOMETRY))
    return "; ".join(selection.reasons(backend, input, weight, spec))


def _measurement(operator: Operator, dtype, backend: str, case: Case, results, plain, exact) -> Measurement:
    candidates = []
    for ours, eager, truth in zip(results, plain, exact, strict=True):
        error, eagers = _error(ours, truth), _error(eager, truth)
        budget = max(testing.RATIO * eagers, testing.roundings(dtype))
        candidates.append((error / budget, error, eagers))
    budget_used, error, eagers = max(candidates)
    return Measurement(operator.name, _name(dtype), backend, 1, error, eagers, budget_used, case.name)


def _error(result: Tensor, exact: Tensor) -> float:
    """Infinite for a result of another shape, and for NaN or infinities where exact has none."""
    if result.shape != exact.shape:
        return torch.inf
    difference = (result.double() - exact).square().mean().sqrt()
    scale = exact.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return (difference / scale).nan_to_num(torch.inf).item()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
