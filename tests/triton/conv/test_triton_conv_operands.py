"""Operands of the fused Triton convolution: addresses, layouts, strides, dtypes and absent ones, and refusals."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import triton_cases as cases
from triton_cases import (
    DESCRIPTORS,
    DTYPES,
    INTERPRETING,
    LAYOUTS,
    PATHS,
    PATHS_AND_LAYOUTS,
    on_device,
)

pytest.importorskip("triton")

from triton_conv import check, run  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=60)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_nothing_outside_the_tensors_is_read_or_written(path, layout, poison):
    """Operands are surrounded by NaN, at an odd offset where no descriptor needs alignment; none is copied first."""
    margin = 64 if path == "descriptors" else 67
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    call = call._replace(weight=cases.strided_as(call.weight, "NHWC"))
    inside = call.map(lambda tensor: poison(tensor, margin) if tensor.is_floating_point() else tensor)
    check(inside, layout, PATHS[path].config)


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("name", ["input", "weight", "residual"])
def test_an_unaligned_base_goes_without_descriptors(name, poison):
    """One unaligned address of three suffices."""
    call = cases.with_epilogue(PATHS["descriptors"].call(torch.float16, "NHWC"), "NHWC")
    if name == "weight":  # in the kernel's layout, so that it is not copied
        call = call._replace(weight=call.weight.contiguous(memory_format=torch.channels_last))
    call = call.changed(**{name: poison(call.tensors()[name])})
    check(call, "NHWC")
    with pytest.raises(ValueError, match="config: .*aligned"):
        run(call, "NHWC", DESCRIPTORS)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_operands_of_the_other_layout(path, layout):
    """For the input, and for input and weight: the layout of y does not depend on theirs."""
    other = next(k for k in LAYOUTS if k != layout)
    call = cases.with_epilogue(PATHS[path].call(torch.float16, layout), layout)
    expected = check(call, layout, PATHS[path].config)
    input, weight = (cases.strided_as(tensor, other) for tensor in (call.input, call.weight))
    for changed in ({"input": input}, {"weight": weight.contiguous(memory_format=torch.channels_last), "input": input}):
        assert torch.equal(check(call._replace(**changed), layout, PATHS[path].config), expected)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_sliced_transposed_and_expanded_operands(path, layout):
    call = PATHS[path].call(torch.float32, layout)
    wide = torch.randn(2, call.input.shape[1] + 3, 9, 17, device=cases.DEVICE)
    for input in (wide[:, 2:-1, 1:-1, ::2], wide[:, :-3].mT, call.input[:1].expand(2, -1, -1, -1), wide.flip(1)[:, 3:]):
        check(call._replace(input=input), layout)
    double_weight = torch.randn(*call.weight.shape[:2], 2, 6, device=cases.DEVICE)
    for weight in (double_weight[..., ::2], call.weight[:, :1].expand_as(call.weight), call.weight.mT.contiguous().mT):
        check(call._replace(weight=weight), layout)


@on_device
@pytest.mark.parametrize("path", PATHS)
def test_vectors_of_any_dtype_and_stride(path):
    for vectors in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        call = cases.with_epilogue(PATHS[path].call(torch.float16, "NHWC"), "NHWC", vectors=vectors)
        check(call, "NHWC", PATHS[path].config)
    channels = call.weight.shape[0]
    e = call.epilogue
    pairs = torch.stack([e.mean, e.mean + 1], 1)
    strided = {"mean": pairs[:, 0], "var": e.var[:1].expand(channels), "slope": pairs[:, 1].half()}
    call = call.changed(**strided, gamma=e.gamma.flip(0).half(), beta=torch.stack([e.beta] * 3)[1])
    check(call, "NHWC", PATHS[path].config)


@on_device
@pytest.mark.parametrize("path, layout", PATHS_AND_LAYOUTS)
def test_absent_operands(path, layout):
    """No bias, no BatchNorm, no gamma, no beta; one slope for all channels."""
    for bias, norm, gamma, beta in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 0, 1)]:
        call = cases.with_epilogue(PATHS[path].call(torch.float16, layout, bias=bias), layout, norm=norm, shared=True)
        e = call.epilogue
        call = call.changed(gamma=e.gamma if gamma else None, beta=e.beta if beta else None)
        check(call, layout, PATHS[path].config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch(layout):
    for path, dtype in itertools.product(PATHS.values(), DTYPES):
        full = path.call(dtype, layout)
        call = cases.with_epilogue(full._replace(input=cases.strided_as(full.input[:0], layout)), layout)
        y = run(call, layout)
        assert y.shape == call.double().convolved().shape and y.dtype == dtype and not y.numel()
        assert y.stride() == cases.strides(y.shape, layout)


# Refusals


@on_device
@pytest.mark.parametrize("path", ["taps", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool], ids=str)
def test_refused_dtypes(dtype, path):
    call = PATHS[path].call(torch.float32, "NCHW").map(lambda tensor: tensor.to(dtype))
    with pytest.raises(TypeError, match=f"input: expected .*got {dtype}"):
        run(call)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_refused_residuals(path, layout):
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    good = call.epilogue.residual
    for bad in (good[:1], good[:, :1], good[..., :-1], good.half(), good.double(), good[0]):
        with pytest.raises(ValueError, match="residual: expected"):
            run(call.changed(residual=bad), layout)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_residuals_of_other_strides(path, layout):
    call = cases.with_epilogue(PATHS[path].call(torch.float32, layout), layout)
    other = next(k for k in LAYOUTS if k != layout)
    good = call.epilogue.residual
    repeated = torch.stack([good, torch.zeros_like(good)], 1).flatten(0, 1)[::2]
    expected = run(call, layout)
    for same in (cases.strided_as(good, other), repeated, good.mT.contiguous().mT):
        assert torch.equal(run(call.changed(residual=same), layout), expected)


@on_device
def test_dropout_is_refused():
    """Dropout is for training, which needs z; this kernel does not store it."""
    call = cases.with_epilogue(PATHS["taps"].call(torch.float32, "NHWC"), "NHWC")
    with pytest.raises(ValueError, match="dropout: expected 0 .*, got 0.5"):
        run(call.changed(dropout=0.5), "NHWC")


@pytest.mark.skipif(INTERPRETING, reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize("path", ["taps", "depthwise"])
def test_a_cpu_tensor_is_refused_without_the_interpreter(path):
    with mock.patch.object(cases, "DEVICE", "cpu"), pytest.raises(RuntimeError, match="input: expected a CUDA tensor"):
        run(PATHS[path].call(torch.float32, "NCHW"))
