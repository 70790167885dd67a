"""The operations of the operators that convolve, for torch.utils.flop_counter.FlopCounterMode."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from math import prod
from types import ModuleType

import torch

from .catalogue import CONVOLUTIONS, ConvCall, Sizes

COUNTER = "torch.utils.flop_counter"


def _formula(parse: Callable[..., ConvCall | None]) -> Callable[..., int]:
    def flops(input: Sizes, *arguments, out_shape, **named) -> int:
        call = parse(input, *arguments, **named)
        assert call is not None
        return 2 * input[0] * prod(call.weight) * prod(call.spec.output_size(input[2:], call.weight[2:]))

    return flops


def _of_weight_gradient(grad: Sizes, input: Sizes, *arguments, **named) -> int:
    return 2 * prod(grad) * input[1] * 9


def _register(counter: ModuleType) -> None:
    for operator, parse in CONVOLUTIONS.items():
        if operator.namespace != "aten":  # torch counts its own convolutions, transposed ones and gradients too
            counter.register_flop_formula(operator.overloadpacket)(_formula(parse))
    counter.register_flop_formula(torch.ops.atrous._winograd_weight_gradient)(_of_weight_gradient)


class _WhenImported(MetaPathFinder):
    """Registers the formulas once torch's counter is imported, which imports Triton: half a second."""

    def find_spec(self, name, path=None, target=None):
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), _register(module))[0]  # type: ignore[method-assign]
        return spec


if COUNTER in sys.modules:
    _register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
