"""Calls of everything that this package runs on a CPU, on fixed tensors, for the tests of threads and of processes.

`calls(kind, dtype)` returns functions without arguments, which give lists of tensors. A kind's functions are for
different shapes and call one object, the same values in every process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import atrous
from atrous.backends import selection, winograd
from atrous.core.spec import Epilogue, Spec, accumulate_type
from atrous.nn import FrozenConv2d
from atrous.ops import schemas

Calls = list[Callable[[], list[Tensor]]]
NCHW, NHWC = torch.contiguous_format, torch.channels_last
DTYPES = (torch.float32, torch.bfloat16)
NATIVE = not selection.available("native")


class Layer(NamedTuple):
    size: tuple[int, int, int, int]
    out_channels: int
    kernel: int
    dilation: int
    stride: int
    layout: torch.memory_format

    @property
    def spec(self) -> Spec:
        padding = self.dilation * (self.kernel // 2)
        return Spec((self.stride,) * 2, (padding,) * 2, (self.dilation,) * 2)


LAYERS = (
    Layer((1, 64, 56, 56), 64, 3, 1, 1, NHWC),  # the first three are Winograd's: see test_cases_are_of_both_kinds
    Layer((2, 64, 28, 20), 72, 3, 1, 1, NHWC),
    Layer((1, 96, 40, 36), 80, 3, 2, 1, NHWC),
    Layer((2, 16, 21, 17), 40, 3, 1, 2, NCHW),
    Layer((3, 24, 17, 13), 56, 1, 1, 1, NHWC),
    Layer((1, 5, 30, 31), 7, 5, 3, 1, NCHW),
    Layer((8, 8, 4, 4), 8, 3, 1, 1, NCHW),  # small: one operator more in place of a call in C++
)
SIZES = ((1, 56, 56), (2, 28, 20), (1, 40, 36), (3, 17, 13), (1, 9, 30), (5, 8, 8), (2, 33, 16), (1, 24, 24))


class Tensors:
    """Random tensors of a dtype from a generator of their own."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(7)

    def __call__(self, *size: int, layout: torch.memory_format = NCHW, least: float | None = None) -> Tensor:
        value = torch.randn(size, generator=self.generator)
        value = value if least is None else value.abs() + least
        return value.to(self.dtype).contiguous(memory_format=layout if value.dim() == 4 else NCHW)

    def weight(self, layer: Layer) -> Tensor:
        channels, kernel = layer.size[1], layer.kernel
        scale = (channels * kernel**2) ** -0.5
        return (self(layer.out_channels, channels, kernel, kernel) * scale).contiguous(memory_format=layer.layout)

    def norm(self, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mean, var, gamma, beta."""
        return self(channels), self(channels, least=0.5), self(channels), self(channels)

    def output(self, layer: Layer) -> Tensor:
        """A tensor like the layer's output."""
        height, width = layer.spec.output_size(layer.size[2:], (layer.kernel,) * 2)
        return self(layer.size[0], layer.out_channels, height, width, layout=layer.layout)


def calls(kind: str, dtype: torch.dtype) -> Calls:
    return KINDS[kind](Tensors(dtype))


def without_gradients(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> Callable[[], list[Tensor]]:
    """Each thread has a gradient mode of its own."""

    def run():
        with torch.no_grad():
            result = call()
        return [result] if isinstance(result, Tensor) else list(result)

    return run


def functional(draw: Tensors) -> Calls:
    """conv_bn_act, bn_act and add_act in eval."""
    listed = []
    for layer in LAYERS:
        x, weight, norm = draw(*layer.size, layout=layer.layout), draw.weight(layer), draw.norm(layer.out_channels)
        z, residual, slope = draw.output(layer), draw.output(layer), draw(layer.out_channels)
        options = {"stride": layer.stride, "padding": layer.spec.padding, "dilation": layer.dilation}
        listed += [
            lambda x=x, w=weight, n=norm, r=residual, s=slope, o=options: atrous.conv_bn_act(
                x, w, None, *n, slope=s, residual=r, **o
            ),
            lambda x=x, w=weight, b=norm[0], o=options: atrous.conv_bn_act(x, w, b, slope="relu", **o),
            lambda z=z, n=norm, r=residual: atrous.bn_act(z, *n, slope=0.25, residual=r, residual_after_act=True),
            lambda z=z, r=residual, s=slope: atrous.add_act(z, r, slope=s),
        ]
    return list(map(without_gradients, listed))


def gradients(draw: Tensors, every: bool = False) -> Calls:
    """conv_bn_act, bn_act and add_act in training: outputs, gradients and running statistics. A weight has a gradient
    where it is Winograd's, or, if `every`, in each layer."""
    listed: Calls = []
    for layer in LAYERS:
        x, weight, norm = draw(*layer.size, layout=layer.layout), draw.weight(layer), draw.norm(layer.out_channels)
        z, residual, grad, slope = *(draw.output(layer) for _ in range(3)), draw(layer.out_channels)
        geometry = {"stride": layer.stride, "padding": layer.spec.padding, "dilation": layer.dilation}
        norm = tuple(vector.float() for vector in norm)
        slope = slope.to(draw.dtype)

        def conv(x, weight, gamma, beta, residual, slope, norm=norm, geometry=geometry):
            running = norm[0].clone(), norm[1].clone()
            y = atrous.conv_bn_act(
                x, weight, None, *running, gamma, beta, slope=slope, residual=residual, training=True, **geometry
            )
            return y, *running

        def pointwise(z, gamma, beta, residual, slope, norm=norm):
            running = norm[0].clone(), norm[1].clone()
            y = atrous.bn_act(z, *running, gamma, beta, slope=slope, training=True)
            return atrous.add_act(y, residual, slope=0.1), *running

        constant = None if every or is_winograd(layer, draw.dtype, "gradient") else weight
        for function, tensors in (
            (conv, (x, weight, *norm[2:], residual, slope)), (pointwise, (z, *norm[2:], residual, slope))
        ):  # fmt: skip
            listed.append(lambda f=function, t=tensors, g=grad, c=constant: differentiated(f, t, g, c))
    return listed


def differentiated(function: Callable, tensors: tuple, grad: Tensor, constant: Tensor | None) -> list[Tensor]:
    """The results of a function and the gradients of its first one, but for that of `constant`."""
    leaves = [tensor.detach().requires_grad_(tensor is not constant) for tensor in tensors]
    y, *rest = function(*leaves)
    return [y.detach(), *rest, *torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], grad)]


def weight_gradients(draw: Tensors) -> Calls:
    """The same with the gradient of every weight; most are oneDNN's, whose bits depend on the number of threads."""
    return gradients(draw, every=True)


def frozen(draw: Tensors, backend: str = "auto") -> Calls:
    """One FrozenConv2d on many sizes, more than it has prepacked weights for."""
    conv, norm = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
    with torch.no_grad():
        conv.weight.copy_(draw.weight(LAYERS[0]))
        norm.running_mean.copy_(draw(64))
    layer = FrozenConv2d(conv, norm, backend).to(draw.dtype)
    inputs = [draw(batch, 64, height, width, layout=NHWC) for batch, height, width in SIZES]
    return [without_gradients(lambda x=x: layer(x, x, 0.1)) for x in inputs]


def frozen_library(draw: Tensors) -> Calls:
    """Its prepacked weights are for one size each."""
    return frozen(draw, "library")


class Net(nn.Module):
    """A strided layer, a residual one and a dilated one; the last two are Winograd's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.PReLU(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.BatchNorm2d(64)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)) + x)
        return nn.functional.leaky_relu(self.bn3(self.conv3(x)), 0.1)


def net(draw: Tensors) -> nn.Module:
    """A Net with drawn values, in eval mode, channels_last."""
    model = Net().eval().requires_grad_(False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            drawn = draw(*tensor.shape, least=0.5 if "var" in name else None)
            tensor.copy_(drawn.float() * (tensor[0].numel() ** -0.5 if tensor.dim() == 4 else 1))
    return model.to(draw.dtype, memory_format=NHWC)


def pictures(draw: Tensors) -> list[Tensor]:
    return [draw(batch, 4, 2 * height, 2 * width, layout=NHWC) for batch, height, width in SIZES]


def primitives(draw: Tensors) -> Calls:
    """Every operator of schemas.def."""
    return [without_gradients(call) for _, call in operators(draw)]


def operators(draw: Tensors) -> list[tuple[str, Callable]]:
    """(name, call) of every operator of schemas.def, on tensors of several chunks and several tiles."""
    listed = []
    for shape, layout in itertools.product(((3, 70, 23, 31), (2, 512, 7, 7), (1, 3, 120, 110)), (NCHW, NHWC)):
        listed += _pointwise(draw, shape, layout)
    for layer in LAYERS:
        listed += _convolutions(draw, layer)
    for layer, (height, width, int16) in itertools.product(LAYERS[:3], ((2, 2, 0), (4, 2, 1), (4, 4, 0), (4, 4, 1))):
        listed += _winograd(draw, layer, [height, width], bool(int16))
    assert {name for name, _ in listed} == set(schemas())
    return [(name, lambda n=name, a=arguments: getattr(torch.ops.atrous, n)(*a)) for name, arguments in listed]


def _epilogue(draw: Tensors, z: Tensor, kind: str = "tensor") -> Epilogue:
    mean, var, gamma, beta = draw.norm(z.shape[1])
    values = {"slope_value": 0.125, "slope_upper": 0.333, "seed": torch.tensor([3, 4])} if kind == "random" else {}
    residual = draw(*z.shape).contiguous(memory_format=NHWC if z.is_contiguous(memory_format=NHWC) else NCHW)
    slope = draw(z.shape[1]) if kind == "tensor" else None
    return Epilogue(mean, var, gamma, beta, slope=slope, slope_kind=kind, residual=residual, **values)


def _pointwise(draw: Tensors, shape: tuple[int, ...], layout: torch.memory_format) -> list[tuple[str, tuple]]:
    z, grad = draw(*shape, layout=layout), draw(*shape, layout=layout)
    means = draw(3, shape[1]).to(accumulate_type(draw.dtype))
    listed: list[tuple[str, tuple]] = [("_statistics", (z,))]
    for kind in ("tensor", "random"):
        e = _epilogue(draw, z, kind)
        again = e._replace(dropout=0.3, seed=torch.tensor([5, 6]))
        listed += [
            ("_epilogue", (z, *e)), ("_epilogue_again", (z, *e)),
            ("_statistics_epilogue", (z, *e._replace(mean=None, var=None))),
            ("_epilogue_reduce", (grad, z, *e)), ("_epilogue_reduce", (grad, z, *again)),
            ("_epilogue_backward", (grad, z, means, True, True, *e)),
            ("_epilogue_gradients", (grad, z, True, True, True, True, *e)),
            ("_epilogue_gradients", (grad, z, False, True, True, True, *again)),
        ]  # fmt: skip
    return listed


def _convolutions(draw: Tensors, layer: Layer) -> list[tuple[str, tuple]]:
    x, weight, bias = draw(*layer.size, layout=layer.layout), draw.weight(layer), draw(layer.out_channels)
    e = _epilogue(draw, draw.output(layer))
    return [
        ("_conv_statistics", (x, weight, bias, *layer.spec)), ("_conv_epilogue", (x, weight, bias, *layer.spec, *e))
    ]  # fmt: skip


def _winograd(draw: Tensors, layer: Layer, tile: list[int], int16: bool) -> list[tuple[str, tuple]]:
    x, weight, bias = draw(*layer.size, layout=NHWC), draw.weight(layer), draw(layer.out_channels)
    z, (_, padding, dilation, _) = draw.output(layer), layer.spec
    u = torch.ops.atrous._winograd_weight(weight, False, tile, int16)
    e = _epilogue(draw, z)
    return [
        ("_winograd_weight", (weight, False, tile, int16)), ("_winograd_weight", (weight, True, tile, int16)),
        ("_winograd_weight_gradient", (z, x, padding, dilation, tile)),
        ("_winograd_epilogue", (x, weight, u, False, tile, int16, bias, padding, dilation, *e)),
        ("_winograd_epilogue", (z, weight, None, True, tile, int16, None, padding, dilation, *Epilogue())),
    ]  # fmt: skip


def is_winograd(layer: Layer, dtype: torch.dtype, call: str) -> bool:
    """True if a convolution is Winograd's. call: "frozen", "changing" or "gradient", that of its weight."""
    x = torch.empty(layer.size, dtype=dtype)
    weight = torch.empty(layer.out_channels, layer.size[1], layer.kernel, layer.kernel, dtype=dtype)
    if call == "gradient":
        return layer.layout == NHWC and winograd.gradient_tile(x, weight, layer.spec) is not None
    return winograd.tile(x, weight, layer.spec, call == "changing") is not None


KINDS: dict[str, Callable[[Tensors], Calls]] = {
    function.__name__: function
    for function in (functional, gradients, weight_gradients, frozen, frozen_library, *[primitives] * NATIVE)
}
