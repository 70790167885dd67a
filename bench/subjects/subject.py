"""A subject: one computation in one dtype, its providers, and its result in fp64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from atrous import testing
from atrous.core.torch_compat import cpu_multiplies

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NHWC = torch.channels_last
OURS = "atrous"  # the name of a provider of this package begins so
Call = Callable[[], Tensor]


class Unavailable(Exception):
    """A provider cannot run here; the message says why."""


@dataclass
class Subject:
    """providers: name -> function that prepares a call; it may raise Unavailable. plain: eager torch in this dtype.

    exact: the result in fp64; without it nothing is checked. ratio: the multiple of plain's error that is allowed.
    unchecked: providers that compute something else, to be compared in time alone.
    """

    dtype: torch.dtype
    providers: dict[str, Callable[[], Call]]
    plain: Call
    exact: Tensor | None = None
    ratio: float = testing.RATIO
    unchecked: tuple[str, ...] = ()

    @functools.cached_property
    def plain_result(self) -> Tensor:
        return self.plain()

    def error(self, name: str, y: Tensor) -> float | None:
        """The largest error against fp64 as a multiple of plain torch's, or of a rounding if that is larger.

        Raises AssertionError if the provider is ours and its error over `ratio` times plain's and one rounding.
        """
        if self.exact is None or name in self.unchecked:
            return None
        relative = testing.roundings(self.dtype, stored=1, computed=0)
        budget = testing.tensor_budget(self.plain_result, self.exact, 1.0, relative)
        if name.startswith(OURS):
            testing.assert_tensor(y, self.plain_result, self.exact, ratio=self.ratio, relative=relative)
        return testing.largest_error(y, self.exact) / budget


def dtypes() -> list[torch.dtype]:
    """fp32, and bf16 where the processor multiplies it: elsewhere torch emulates it."""
    multiplied = DEVICE.type == "cuda" or cpu_multiplies(torch.bfloat16)
    return [torch.float32] + [torch.bfloat16] * multiplied


def compiled(plain: Callable[..., Tensor], arguments: tuple, **options) -> Callable[[], Call]:
    """A provider: torch.compile of the whole function, with these options of torch.compile."""

    def prepare() -> Call:
        run = torch.compile(plain, fullgraph=True, dynamic=False, **options)
        return lambda: run(*arguments)

    return prepare
