"""Shared helpers of the tests of Triton convolutions: calls, their oracle, the interpreter's process.

Triton reads TRITON_INTERPRET when it is imported, so a test file runs itself again in a process that has it set. The
interpreter computes bf16 wrongly, so bf16 is not tested there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atrous import reference, testing
from atrous.core.spec import Epilogue, Spec
from atrous.triton_kernels.conv import configs

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available()
# The cases of docs/cases.md that the interpreter runs, for pytest's -k. It computes bf16 wrong, which is autocast's
# default on a CPU, and patches Triton's language while it runs, which two threads must not; fp64 is not convolved;
# compilers need the operator on a GPU.
INTERPRETED = "triton and not (bfloat16 or autocast or float64 or double or compile or export or two_threads)"
DEVICE = "cpu" if INTERPRETING or not CUDA else "cuda"
DTYPES = (torch.float16, torch.float32) if INTERPRETING else (torch.float16, torch.bfloat16, torch.float32)
SLOPE_KINDS = ("relu", "number", "tensor", "random")
RESIDUALS = ("none", "before", "after")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
NAN = float("nan")


def on_device(test):
    """Runs under the interpreter and on a GPU."""
    return test if INTERPRETING else on_gpu(test)


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA or INTERPRETING, reason="needs an NVIDIA GPU")(test))


BULK_COPIES = not CUDA or INTERPRETING or torch.cuda.get_device_capability() >= (9, 0)
on_sm_90 = pytest.mark.skipif(not BULK_COPIES, reason="needs an NVIDIA GPU of sm_90 or newer")


def interpret(*files, capsys, least, only=""):
    """Runs the tests of these files in a process with the interpreter; asserts that all pass, and more than `least`.

    only: an expression for pytest -k. TESTS_DRAWN=n: one in n of them runs (drawn.py).
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
        "-k",
        only,
    ]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    last = run.stdout.strip().rpartition("\n")[2]
    with capsys.disabled():
        print(f" [interpreter: {last}]", end=" ")
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", last)[1]) > least // int(os.environ.get("TESTS_DRAWN", "1"))


def interpreted(*files, least, only=""):
    """A test that interprets these files; it is skipped in the interpreter's own process."""

    @pytest.mark.skipif(INTERPRETING, reason="already in the interpreter's process")
    def test(capsys):
        interpret(*files, capsys=capsys, least=least, only=only)

    return test


@contextlib.contextmanager
def poisoned_outputs():
    """Fills new tensors, so that an element which a kernel does not write is NaN, or the integer 0x5A."""

    def poisoning(allocate):
        def run(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(NAN if tensor.is_floating_point() else 0x5A)

        return run

    names = ("empty", "empty_like", "empty_strided")
    with mock.patch.multiple(torch, **{name: poisoning(getattr(torch, name)) for name in names}):
        yield


class Call(NamedTuple):
    """The positional arguments of `reference.conv_epilogue` and of the launcher."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    spec: Spec
    epilogue: Epilogue = Epilogue()

    def convolved(self) -> Tensor:
        return F.conv2d(*self[:3], *self.spec)

    def double(self) -> Call:
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def map(self, change) -> Call:
        """The call with change(tensor) for each of its tensors."""

        def one(value):
            return change(value) if isinstance(value, Tensor) else value

        return Call(*map(one, self[:3]), self.spec, Epilogue(*map(one, self.epilogue)))

    def changed(self, **values) -> Call:
        """The call with these values, of fields of its own, its geometry or its epilogue."""

        def taken(whole):
            return whole._replace(**{name: values.pop(name) for name in whole._fields if name in values})

        return self._replace(spec=taken(self.spec), epilogue=taken(self.epilogue))._replace(**values)

    def tensors(self) -> dict[str, Tensor]:
        named = self._asdict() | self.epilogue._asdict()
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def draw(*size: int, dtype=torch.float32, layout="NCHW") -> Tensor:
    return torch.randn(size, device=DEVICE).to(dtype, memory_format=LAYOUTS[layout] if len(size) == 4 else None)


def seed_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers, device=DEVICE)


def strided_as(values: Tensor, layout: str) -> Tensor:
    """The values with the exact strides of torch.empty in that layout; `to` keeps the strides of axes of size 1."""
    return torch.empty(values.shape, dtype=values.dtype, device=DEVICE, memory_format=LAYOUTS[layout]).copy_(values)


def convolution(
    size, out_channels, kernel, dtype, layout="NCHW", *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
    bias=True,
) -> Call:  # fmt: skip
    """A convolution with an identity epilogue. The weights preserve the variance whatever the fan-in."""
    fan_in = size[1] // groups * kernel[0] * kernel[1]
    weight = (torch.randn(out_channels, size[1] // groups, *kernel, device=DEVICE) * (2 / fan_in) ** 0.5).to(dtype)
    input = strided_as(draw(*size, dtype=dtype), layout)
    spec = Spec(stride, padding, dilation, groups)
    return Call(input, weight, draw(out_channels, dtype=dtype) if bias else None, spec)


def with_epilogue(
    call: Call, layout="NCHW", slope_kind="tensor", residual="before", norm=True, shared=False, vectors=None
):
    """The call with an epilogue: slopes below 0 and above 1, gammas of both signs."""
    channels, vectors = call.weight.shape[0], vectors or torch.float32
    changed: dict[str, Any] = {"eps": 1e-3, "slope_kind": slope_kind, "slope_value": -0.125, "slope_upper": 0.5}
    if norm:
        changed |= {name: draw(channels, dtype=vectors) for name in ("mean", "gamma", "beta")}
        changed["var"] = draw(channels, dtype=vectors).abs() + 0.1
    changed |= {"slope": draw(1 if shared else channels, dtype=vectors), "seed": seed_of(0x1234_5678_9ABC, 1 << 40)}
    if residual != "none":
        z = call.map(lambda tensor: tensor.to("meta")).convolved()
        changed["residual"] = strided_as(draw(*z.shape, dtype=call.input.dtype), layout)
    return call.changed(**changed, residual_after_act=residual == "after")


def same_padding(kernel, dilation=(1, 1)) -> tuple[int, int]:
    return tuple(step * (extent - 1) // 2 for extent, step in zip(kernel, dilation))


# The smallest config of each code path through the kernels.
POINTERS, DESCRIPTORS = (
    min((config for config in configs.CONV if config.descriptors == wanted), key=lambda config: config.accumulators)
    for wanted in (False, True)
)
SIZE = (5, 6)


class KernelPath(NamedTuple):
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    config: configs.Conv | None
    batch: int = 2

    def call(self, dtype, layout, **changed) -> Call:
        options = {"padding": (1, 2), "dilation": (2, 1), "groups": self.groups} | changed
        return convolution(
            (self.batch, self.in_channels, *SIZE), self.out_channels, self.kernel, dtype, layout, **options
        )


PATHS = {
    "flat_k": KernelPath(5, 9, (2, 3), 1, POINTERS),
    "taps": KernelPath(17, 9, (2, 3), 1, POINTERS),
    "grouped": KernelPath(32, 6, (2, 3), 2, POINTERS),
    "persistent": KernelPath(17, 9, (2, 3), 1, POINTERS._replace(waves=2), 4),  # three tiles, two programs
    "splits": KernelPath(17, 9, (3, 3), 1, POINTERS._replace(splits=2)),
    "descriptors": KernelPath(64, 24, (2, 3), 1, DESCRIPTORS),
    "depthwise": KernelPath(5, 5, (2, 3), 5, None),
    "multiplier": KernelPath(3, 9, (2, 3), 3, None),
}


def config_runs(config: configs.Conv | None, layout="NHWC", draws=False, ieee=False) -> bool:
    """True if a convolution that is large enough in each dimension can take this config here, registers aside."""
    if config is None:
        return True
    bulk = BULK_COPIES and layout == "NHWC" and not ieee
    return (bulk or not config.descriptors) and not (config.splits > 1 and draws)


PATHS_AND_LAYOUTS = [(path, layout) for path in PATHS for layout in LAYOUTS if config_runs(PATHS[path].config, layout)]


def config_id(value) -> str:
    """A config's name in a test id."""
    if not isinstance(value, configs.Conv):
        return str(value)
    kind = "descriptors" if value.descriptors else "pointers"
    return f"{value.block_m}x{value.block_n}x{value.depth}-{kind}-splits{value.splits}-waves{value.waves}"


# splits -> a kernel with one tap more than they need; pixels of a tile -> an output that takes two such tiles.
SPLIT_KERNELS = {1: (2, 2), 2: (3, 3), 4: (1, 17), 8: (3, 11), 16: (5, 13)}
PIXELS = {64: (2, 5, 7), 128: (2, 7, 10), 256: (3, 8, 11)}


def rotate_options(listed, *options) -> list[tuple]:
    """Pairs every config that runs here with one combination of the options, whose last is the layout.

    The combination changes from config to config, since all of them would take too long to interpret and to compile.
    """
    pairs = []
    for i, config in enumerate(listed):
        fitting = [combined for combined in itertools.product(*options) if config_runs(config, combined[-1])]
        if fitting:
            pairs.append((config, *fitting[(i + i // len(configs.CONV)) % len(fitting)]))
    return pairs


def convolution_for(config: configs.Conv, dtype, layout, kernel, blocks=1, tiles=2, **geometry) -> Call:
    """A convolution for this config: two tiles of pixels and `tiles` of channels, the last of each nearly empty.

    A tap takes `blocks` steps of channels. With pointers the last step is not full, but there are enough channels that
    the flat path is not taken.
    """
    deep = config.block_k(dtype.itemsize)
    channels = deep * blocks if config.descriptors else max(deep * (blocks - 1) + 3, configs.FLAT_K_CHANNELS)
    batch, *size = geometry.pop("pixels", PIXELS[config.block_n])
    options = {"padding": same_padding(kernel, geometry.get("dilation", (1, 1)))} | geometry
    out_channels = config.block_m * (tiles - 1) + 8
    return convolution((batch, channels, *size), out_channels, kernel, dtype, layout, **options)


def tf32(dtype) -> bool:
    """True if fp32 factors are rounded to tf32; the interpreter computes in fp32."""
    return dtype == torch.float32 and not INTERPRETING and torch.backends.cudnn.conv.fp32_precision == "tf32"


@contextlib.contextmanager
def precision(wanted: str):
    """Sets torch's precision of fp32 convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def epilogue_magnitude(size: Tensor, e: Epilogue) -> Tensor:
    """The sum of the magnitudes that an epilogue adds for each element, where that of z is `size`; all in fp64."""
    column = (1, -1) + (1,) * (size.dim() - 2)
    if e.mean is not None:
        scale = ((1 if e.gamma is None else e.gamma) / (e.var + e.eps).sqrt()).abs().view(column)
        size = (size + e.mean.abs().view(column)) * scale + (0 if e.beta is None else e.beta.abs().view(column))
    size = size + (0 if e.residual is None else e.residual.abs())
    slopes = {"number": [e.slope_value], "random": [e.slope_value, e.slope_upper]}.get(e.slope_kind, [])
    slopes += [e.slope.abs().max().item()] if e.slope_kind == "tensor" else []
    return size * max([1.0, *map(abs, slopes)]) / (1 - e.dropout)


def assert_within(y: Tensor, call: Call, truth: Tensor | None = None) -> None:
    """Asserts that y is the oracle's, by the rule of an element.

    tf32 keeps 10 bits of each factor, truncated or rounded: an error of at most 2**-9 of a product.
    """
    truth = reference.conv_epilogue(*call.double()) if truth is None else truth
    assert (y.dtype, y.device) == (call.input.dtype, call.input.device)
    exact = call.double()
    e, convolved = exact.epilogue, F.conv2d(exact.input.abs(), exact.weight.abs(), None, *call.spec)
    size = convolved + (0 if call.bias is None else exact.bias.abs().view(1, -1, 1, 1))
    unshifted = e._replace(mean=None if e.mean is None else 0 * e.mean, beta=None, residual=None)
    more = epilogue_magnitude(2.0**-9 * convolved, unshifted) if tf32(call.input.dtype) else 0.0
    testing.assert_elements(y, truth, epilogue_magnitude(size, e), computed=8, more=more)


def check_if_it_fits(check, call, layout, config) -> None:
    """Runs check(call, layout, config), or skips the test if the config needs more registers than the GPU has.

    The interpreter has registers for any tile. On a GPU no other reason to refuse the call is accepted.
    """
    if INTERPRETING:
        with mock.patch.object(configs, "max_accumulators", lambda key, config: config.accumulators):
            check(call, layout, config)
        return
    try:
        check(call, layout, config)
    except ValueError as refusal:
        if not re.fullmatch(r"config: expected at most \d+ accumulators per thread; got .*", str(refusal)):
            raise
        pytest.skip(str(refusal))


@contextlib.contextmanager
def unmutated(call: Call):
    before = call.map(Tensor.clone).tensors()
    yield
    for name, tensor in call.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"


def strides(size, layout: str) -> tuple[int, ...]:
    return torch.empty(size, device="meta", memory_format=LAYOUTS[layout]).stride()


def compiled() -> int:
    """The number of our kernels that are compiled for the current GPU."""
    modules = [module for name, module in sys.modules.items() if name.startswith("atrous.triton_kernels.")]
    kernels = {id(v): v for module in modules for v in vars(module).values() if hasattr(v, "device_caches")}
    return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels.values())
