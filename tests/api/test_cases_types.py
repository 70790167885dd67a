"""Edge cases of dtypes and devices: each dtype, mixed dtypes, autocast, the meta device, inputs that eager refuses."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import agree, agree_or_refuse, conv_arguments, refuse
from parameters import DTYPES, HALVES
from torch import nn

import atrous
from atrous.testing import assert_tensor

VECTORS = ("running_mean", "running_var", "bn_weight", "bn_bias")
SLOPES = ("relu", 0.1, 1.0, "shared", "channels")


def slope_of(kind, dtype):
    sizes = {"shared": 1, "channels": 6}
    return torch.randn(sizes[kind]).to(dtype) if kind in sizes else kind


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", ["none", "before", "after"])
@pytest.mark.parametrize("slope", SLOPES)
def test_dtype(backend, dtype, place, slope):
    arguments = conv_arguments(dtype=dtype, padding=2, dilation=2, slope=slope_of(slope, dtype))
    if place != "none":
        arguments |= dict(residual=torch.randn(2, 6, 9, 8).to(dtype), residual_after_act=place == "after")
    agree("conv_bn_act", backend, arguments)
    shared = ("running_mean", "running_var", "slope", "residual", "residual_after_act")
    agree(
        "bn_act",
        backend,
        dict(input=oracle.conv_bn_act(**arguments)) | {name: arguments[name] for name in shared if name in arguments},
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
def test_dtype_of_add_act(backend, dtype, slope):
    pair = (torch.randn(2, 6, 7, 5).to(dtype) for _ in range(2))
    agree("add_act", backend, dict(zip(("input", "other"), pair), slope=slope_of(slope, dtype)))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("slope", ["relu", 0.1])
def test_half_conv_with_fp32_batch_norm(backend, dtype, slope):
    arguments = conv_arguments(dtype=dtype, residual=torch.randn(2, 6, 7, 6).to(dtype), slope=slope)
    y = agree("conv_bn_act", backend, arguments | {name: arguments[name].float() for name in VECTORS})
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_input_with_an_fp32_prelu(backend, dtype):
    arguments = conv_arguments(dtype=dtype, slope=torch.rand(6))
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), "slope")


def test_fp16_activations_of_10000_stay_finite(backend):
    """Their squares and a variance of 1e8 overflow fp16, so the epilogue must be computed in fp32."""
    arguments = dict(input=torch.full((2, 4, 3, 3), 1e4).half(), weight=torch.full((6, 4, 1, 1), 0.25).half())
    vectors = dict(running_mean=-1e4, running_var=1e8, bn_weight=-2e4)
    norm = {name: torch.full((6,), value) for name, value in vectors.items()}
    residual = dict(residual=torch.full((2, 6, 3, 3), 3e4).half())
    for changes in ({}, norm, residual, norm | residual):
        y = agree("conv_bn_act", backend, arguments | changes | dict(slope=torch.tensor([0.25]).half()))
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("residual", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_residual_of_another_type(backend, dtype, residual):
    arguments = conv_arguments(dtype=dtype, slope=0.1, residual=(torch.randn(2, 6, 7, 6) * 3).to(residual))
    agree_or_refuse(
        lambda: atrous.conv_bn_act(**arguments, backend=backend),
        lambda: oracle.conv_bn_act(**arguments),
        "residual",
        truth=oracle.conv_bn_act(**oracle.wide(arguments)),
        arithmetic=dtype,
    )


MIXED = {
    "fp64 input": (dict(input=torch.randn(2, 4, 9, 8).double()), "input|weight"),
    "fp64 weight": (dict(weight=torch.randn(6, 4, 3, 3).double()), "input|weight"),
    "bf16 input": (dict(input=torch.randn(2, 4, 9, 8).bfloat16()), "input|weight"),
    "fp64 conv, fp32 BatchNorm": (
        {name: conv_arguments()[name].double() for name in ("input", "weight", "bias")},
        "running_mean|input",
    ),
    "fp64 bias": (dict(bias=torch.randn(6).double()), "bias"),
    "fp64 running_mean": (dict(running_mean=torch.randn(6).double()), "running_mean"),
    "int running_mean": (dict(running_mean=torch.zeros(6).long()), "running_mean"),
    "fp64 slope": (dict(slope=torch.rand(6).double()), "slope"),
    "int slope": (dict(slope=torch.ones(6).long()), "slope"),
    "int input": (dict(input=torch.ones(2, 4, 9, 8).long()), "input|weight"),
    "bool input": (dict(input=torch.ones(2, 4, 9, 8).bool()), "input|weight"),
    "complex input": (dict(input=torch.ones(2, 4, 9, 8).cfloat()), "input|weight"),
    "int conv": (dict(input=torch.ones(2, 4, 9, 8).long(), weight=torch.ones(6, 4, 3, 3).long(), bias=None), "input"),
    "bool conv": (dict(input=torch.ones(2, 4, 9, 8).bool(), weight=torch.ones(6, 4, 3, 3).bool(), bias=None), "input"),
    "complex conv": (
        dict(input=torch.ones(2, 4, 9, 8).cfloat(), weight=torch.ones(6, 4, 3, 3).cfloat(), bias=None),
        "input",
    ),
    "float8 conv": (
        dict(
            input=torch.ones(2, 4, 9, 8).to(torch.float8_e4m3fn),
            bias=None,
            weight=torch.ones(6, 4, 3, 3).to(torch.float8_e4m3fn),
        ),
        "input",
    ),
    "sparse input": (dict(input=torch.randn(2, 4, 9, 8).to_sparse()), "input"),
    "sparse weight": (dict(weight=torch.randn(6, 4, 3, 3).to_sparse()), "weight"),
    "quantized input": (dict(input=torch.quantize_per_tensor(torch.randn(2, 4, 9, 8), 0.1, 0, torch.qint8)), "input"),
    "BatchNorm on meta": (
        dict(running_mean=torch.zeros(6, device="meta"), running_var=torch.ones(6, device="meta")),
        "running_mean",
    ),
    "slope on meta": (dict(slope=torch.zeros(6, device="meta")), "slope"),
    "residual on meta": (dict(residual=torch.zeros(2, 6, 7, 6, device="meta")), "residual"),
    "input on meta": (dict(input=torch.zeros(2, 4, 9, 8, device="meta")), "input|weight|running_mean"),
}


@pytest.mark.parametrize("changes, named", MIXED.values(), ids=MIXED)
def test_refused_as_eager_refuses(backend, changes, named):
    arguments = conv_arguments() | changes
    refuse(lambda: atrous.conv_bn_act(**arguments, backend=backend), lambda: oracle.conv_bn_act(**arguments), named)


@pytest.mark.parametrize("kind", ["to_sparse", "quantized", "long", "cfloat", "double"])
def test_bn_act_refuses_as_eager_refuses(backend, kind):
    x = torch.randn(2, 4, 5, 5)
    x = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8) if kind == "quantized" else getattr(x, kind)()
    arguments = dict(input=x, running_mean=torch.zeros(4), running_var=torch.ones(4))
    refuse(
        lambda: atrous.bn_act(**arguments, backend=backend), lambda: oracle.bn_act(**arguments), "input|running_mean"
    )


def test_integers_and_complex_without_batch_norm(backend):
    """Eager convolves them: agrees, or raises an error that names the argument."""
    for dtype in (torch.int64, torch.int8, torch.complex64):
        arguments = dict(input=torch.ones(2, 4, 9, 8).to(dtype), weight=torch.ones(6, 4, 3, 3).to(dtype))
        agree_or_refuse(
            lambda: atrous.conv_bn_act(**arguments, backend=backend),  # noqa: B023
            lambda: oracle.conv_bn_act(**arguments),  # noqa: B023
            "input",
        )
    for x in (torch.ones(3, 4).long(), torch.randn(3, 4).cfloat(), torch.randn(3, 4).bool()):
        agree_or_refuse(lambda: atrous.add_act(x, x, backend=backend), lambda: oracle.add_act(x, x), "input")  # noqa: B023
    x = torch.randn(2, 4, 5, 5)
    agree_or_refuse(lambda: atrous.add_act(x, x.bfloat16(), backend=backend), lambda: x + x.bfloat16(), "other")
    agree_or_refuse(lambda: atrous.add_act(x, 1.0, backend=backend), lambda: x + 1.0, "other")
    refuse(
        lambda: atrous.add_act(x.long(), x.long(), slope=0.1, backend=backend),
        lambda: oracle.add_act(x.long(), x.long(), slope=0.1),
        "input",
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_meta_alone_gives_shapes(backend, layout):
    arguments = conv_arguments(
        size=(13, 29), stride=2, padding=1, slope=torch.rand(6), residual=torch.randn(2, 6, 7, 15)
    )
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    meta["input"] = meta["input"].to(memory_format=layout)
    eager, y = oracle.conv_bn_act(**meta), atrous.conv_bn_act(**meta, backend=backend)
    assert y.is_meta and y.shape == (2, 6, 7, 15) and y.dtype == eager.dtype and y.stride() == eager.stride()
    z = atrous.bn_act(y, meta["running_mean"], meta["running_var"], backend=backend)
    assert z.is_meta and atrous.add_act(z, y, slope="relu", backend=backend).shape == y.shape


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(6), None])
@torch.no_grad()
def test_autocast(backend, act):
    """The output has the low precision; the module's fp32 tensors are not cast in place."""
    plain, x, residual = oracle.make_plain(act).eval(), torch.randn(2, 4, 9, 8), torch.randn(2, 6, 9, 8).bfloat16()
    ours = oracle.ours_of(plain, backend)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert_tensor(ours(x, residual), plain(x, residual), oracle.wide(plain)(x.double(), residual.double()))
        assert ours(x).dtype == plain(x).dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for name, tensor in ours.state_dict().items() if "num" not in name)


def test_autocast_in_training(backend):
    plain, x = oracle.make_plain(nn.LeakyReLU()).train(), torch.randn(2, 4, 9, 8)
    ours, truth = oracle.ours_of(plain, backend), oracle.wide(plain)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert_tensor(ours(x), plain(x), truth(x.double()))
    for name in ("running_mean", "running_var"):
        assert_tensor(getattr(ours.bn, name), getattr(plain.bn, name), getattr(truth.bn, name), name)


def test_autocast_and_the_ops_without_a_convolution(backend):
    """Autocast casts input, weight and conv bias; BatchNorm and add keep their dtypes; fp64 is not cast."""
    x, y, mean, var = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.zeros(4), torch.ones(4)
    arguments = conv_arguments(dtype=torch.float64)
    with torch.autocast(x.device.type, torch.bfloat16):
        agree("bn_act", backend, dict(input=x, running_mean=mean, running_var=var, slope=0.1))
        agree("add_act", backend, dict(input=x, other=y, slope="relu"))
        agree("conv_bn_act", backend, arguments)
