"""Runs a model and its fused copy once on the same input and compares the outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.torch_compat import tree_leaves, tree_map


def compare(plain: nn.Module, fused: nn.Module, example_inputs) -> None:
    """Raises ValueError if the plain model rejects the inputs, RuntimeError if the outputs differ.

    Tolerance: sqrt(eps of the dtype) times the largest plain value. It finds a wrong fusion, not a lost digit: the
    error budget of testing.py would need the model in fp64. Buffers and training flags are restored.
    """
    inputs = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    agree(outputs(plain, inputs), _run(fused, inputs))


def outputs(model: nn.Module, inputs) -> list:
    """The outputs of a model in eval mode. Raises ValueError if it rejects the inputs."""
    try:
        return _run(model, inputs)
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        raise ValueError(f"example_inputs: the model does not take them: {type(error).__name__}: {text}") from error


def agree(expected: list, got: list, caller: str = "fuse", other: str = "fused copy") -> float:
    """Returns the largest difference between the two lists of outputs, or raises RuntimeError.

    caller, other: the caller and the name of the second model in error messages.
    """
    if len(expected) != len(got):
        raise RuntimeError(f"{caller}: the model returns {len(expected)} values, its {other} {len(got)}")
    return max((_agree(index, a, b, caller, other) for index, (a, b) in enumerate(zip(expected, got))), default=0.0)


def _agree(index: int, expected, got, caller: str, other: str) -> float:
    both = f"{caller}: output {index} of the model and of its {other}"
    if not isinstance(expected, Tensor) or not expected.is_floating_point() or not expected.numel():
        if type(expected) is not type(got) or (isinstance(expected, Tensor) and not torch.equal(expected, got)):
            raise RuntimeError(f"{both} differ")
        return 0.0
    finite = expected[expected.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    allowed = torch.finfo(expected.dtype).eps ** 0.5 * largest
    like = f"{tuple(expected.shape)} {expected.dtype}"
    if f"{tuple(got.shape)} {got.dtype}" != like:
        raise RuntimeError(
            f"{caller}: output {index} of the model is {like}, its {other}'s {tuple(got.shape)} {got.dtype}"
        )
    off = (expected - got).nan_to_num().abs().max().item()  # equal infinities do not differ
    if not torch.allclose(got, expected, 0.0, allowed, equal_nan=True):
        raise RuntimeError(f"{both} differ by {off:.3g}, more than {allowed:.3g} (the largest value is {largest:.3g})")
    return off


@torch.no_grad()
def _run(model: nn.Module, inputs) -> list:
    """Returns the outputs in eval mode with a fixed seed; restores buffers, training flags and generators."""
    modules = list(model.modules())
    flags = [m.training for m in modules]
    buffers = [(b, b.clone()) for b in model.buffers()]
    inputs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, tuple(inputs))
    try:
        for m in modules:
            m.training = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return tree_leaves(model(*inputs))
    finally:
        for m, flag in zip(modules, flags):
            m.training = flag
        for buffer, before in buffers:
            buffer.copy_(before)
