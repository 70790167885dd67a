"""Tests the Winograd convolution of libatrous.so, with each tile, against the fp64 oracle."""

from __future__ import annotations

import statistics
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from native_cases import CASES, KINDS, arguments
from oracle import wide
from parameters import HALVES
from torch import Tensor

from atrous import reference
from atrous.backends import selection
from atrous.backends.winograd import CHANNELS, Tile
from atrous.core.spec import Epilogue, Spec
from atrous.testing import assert_tensor

reasons = selection.reasons("native", torch.empty(0))
pytestmark = [
    pytest.mark.skipif(bool(reasons), reason="; ".join(reasons)),
    pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="only the CPU has this"),
]
ops = torch.ops.atrous

STORED = (torch.float32, *HALVES)
TILES = [Tile(*size, int16) for size in ((2, 2), (4, 2), (4, 4)) for int16 in (False, True)]
POINTS = {2: (0, 1, -1), 4: (0, Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2))}
PLAIN = Epilogue()
each_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}" + "-int16" * tile[2])


def transform(weight: Tensor, tile: Tile, turned: bool = False) -> Tensor:
    return ops._winograd_weight(weight, turned, tile[:2], tile.int16)


def winograd(input, weight: Tensor, bias, padding, dilation, e: Epilogue = PLAIN, tile: Tile = TILES[0]) -> Tensor:
    geometry = False, tile[:2], tile.int16, bias, padding, dilation
    return ops._winograd_epilogue(input, weight, transform(weight, tile), *geometry, *e)


def check_winograd(
    tile, shape, channels, padding, dilation, kind="number", place=None, dtype=torch.float32, norm=False, special=None
):
    """The error is within a small multiple of eager's or, in 16-bit fixed point, of 2^-12 of the largest output; that
    it is within eager's from LEAST_CHANNELS on is another test."""
    input = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    if special is not None:
        input[-1, -1, 2:5, 3] = special
    weight = (torch.randn(channels, shape[1], 3, 3) / (9 * shape[1]) ** 0.5).to(dtype)
    bias = torch.randn(channels).to(dtype)
    z = F.conv2d(input, weight, bias, 1, padding, dilation).contiguous(memory_format=torch.channels_last)
    e = arguments(z, kind, place, norm)
    y = winograd(input, weight, bias, padding, dilation, e, tile)
    assert y.shape == z.shape and y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    spec = Spec((1, 1), padding, dilation)
    truth = reference.conv_epilogue(input.double(), weight.double(), bias.double(), spec, wide(e))
    eager = reference.conv_epilogue(input, weight, bias, spec, e)
    fixed_point = 4e-3 if tile.int16 and dtype != torch.bfloat16 else 0.0
    small = tile.height == 2
    assert_tensor(y, eager, truth, ratio=1.0 if small else 1.25, relative=max(1e-6 if small else 4e-6, fixed_point))
    again = winograd(input, weight, bias, padding, dilation, e, tile)
    torch.testing.assert_close(again, y, rtol=0, atol=0, equal_nan=True)


@each_tile
@pytest.mark.parametrize("channels", [(1, 1), (3, 7), (16, 16), (31, 65), (65, 31), (64, 48)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (13, 29)], ids=str)
def test_odd_sizes(channels, size, tile):
    for images in (1, 3):
        check_winograd(tile, (images, channels[0], *size), channels[1], (1, 1), (1, 1))


@each_tile
@pytest.mark.parametrize(
    "padding, dilation",
    [
        ((0, 0), (1, 1)),
        ((1, 2), (2, 1)),
        ((2, 2), (2, 2)),
        ((4, 0), (4, 3)),
        ((5, 7), (5, 7)),
        ((30, 40), (20, 30)),
        ((9, 9), (1, 1)),
    ],
    ids=str,
)
def test_any_padding_and_dilation(padding, dilation, tile):
    check_winograd(tile, (2, 5, 13, 29), 18, padding, dilation)
    if min(padding) > min(dilation):
        check_winograd(tile, (1, 9, 4, 6), 18, padding, dilation)


@each_tile
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("kind, place", CASES)
def test_epilogues(kind, place, dtype, tile):
    for shape, channels in (((2, 19, 7, 9), 21), ((1, 32, 10, 6), 16)):
        check_winograd(tile, shape, channels, (2, 1), (2, 1), kind, place, dtype, norm=True)


@each_tile
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
def test_infinities(special, kind, tile):
    """Outputs that do not depend on them stay finite; transformed inputs mix all inputs of a tile."""
    for dtype, dilation in ((torch.float32, (1, 1)), (torch.float16, (2, 3)), (torch.bfloat16, (1, 1))):
        check_winograd(tile, (2, 19, 13, 11), 21, (1, 1), dilation, kind, "before", dtype, special=special)


def test_no_images():
    weight = torch.randn(8, 4, 3, 3)
    input = torch.empty(0, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    assert winograd(input, weight, None, (1, 1), (1, 1)).shape == (0, 8, 5, 5)


def weight_matrix(outputs: int) -> Tensor:
    """G of F(M, 3): row j is (1, a, a^2) / product of a - b over the other points b, with a = POINTS[M][j]; the last is
    that of infinity. Signs are those that make the products positive, for M = 2."""
    rows = []
    for a in POINTS[outputs]:
        product = Fraction(1)
        for b in POINTS[outputs]:
            product *= a - b if a != b else 1
        rows.append([a**power / product for power in range(3)])
    rows.append([Fraction(0), Fraction(0), Fraction(1)])
    matrix = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    return matrix * torch.tensor([[-1.0], [1.0], [1.0], [1.0]]) if outputs == 2 else matrix


@each_tile
def test_transformed_weights(tile):
    """u = G g G' of each pair of channels, in panels of 16 output channels, the last padded with zeros; in 16-bit fixed
    point in pairs of input channels, padded to 32, and behind them the factors."""
    weight = torch.randn(19, 5, 3, 3)
    u = weight_matrix(tile.height) @ weight.double() @ weight_matrix(tile.width).T
    expected = F.pad(u.reshape(19, 5, tile.positions), (0, 0, 0, 0, 0, 13)).reshape(2, 16, 5, -1).permute(0, 3, 2, 1)
    for laid_out in (weight, weight.contiguous(memory_format=torch.channels_last)):
        result = transform(laid_out, tile)
        if tile.int16:
            pairs, factors = result[:, :, :-1].double(), result[:, :, -1].contiguous().view(torch.float32).double()
            numbers = pairs.unflatten(3, (16, 2)).permute(0, 1, 2, 4, 3).flatten(2, 3)
            assert not numbers[:, :, 5:].any() and numbers.abs().max() == 8191
            error = numbers[:, :, :5] * factors[:, :, None] - expected
            assert (error.abs() <= 0.501 * factors[:, :, None]).all()
        else:
            torch.testing.assert_close(result, expected.float(), rtol=2e-7, atol=0)
    turned = transform(weight.flip(2, 3).transpose(0, 1), tile, True)
    assert torch.equal(turned, transform(weight, tile))


def rms(error: Tensor) -> float:
    return error.double().square().mean().sqrt().item()


@pytest.mark.parametrize("size", [28, 41])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 8, 18])
def test_errors_in_fp32_are_a_direct_convolution_s(dilation, size):
    """The error of oneDNN's convolution in channels_last, with the least and the most channels that the choice allows
    for each tile, and some between."""
    allowed = next(tiles for most, tiles in CHANNELS.items() if dilation <= most)
    for tile, channels in allowed.items():
        for count in {channels.start, min(2 * channels.start, channels.stop - 1), min(channels.stop - 1, 640)}:
            x = torch.randn(1, count, size, size).relu().contiguous(memory_format=torch.channels_last)
            weight = torch.randn(64, count, 3, 3) / (9 * count) ** 0.5
            truth = F.conv2d(x.double(), weight.double(), None, 1, dilation, dilation)
            direct = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), None, 1, dilation, dilation)
            y = winograd(x, weight, None, (dilation, dilation), (dilation, dilation), tile=tile)
            assert rms(y - truth) <= 1.05 * rms(direct - truth), (tile, count)


@pytest.mark.parametrize("place", [None, "before"])
def test_errors_in_bfloat16_are_eager_s(place):
    """A layer's error against fp64 over eager's, 4x4 outputs in 16-bit fixed point: at most 1.25, 1.0 in the median."""
    tile, ratios = Tile(4, 4, True), []
    for channels in (64, 128, 256):
        x = torch.randn(1, channels, 16, 16).relu().bfloat16().contiguous(memory_format=torch.channels_last)
        weight = (torch.randn(48, channels, 3, 3) / (9 * channels) ** 0.5).bfloat16()
        spec = Spec((1, 1), (1, 1))
        e = arguments(F.conv2d(x, weight, None, 1, 1).contiguous(memory_format=torch.channels_last), "number", place)
        truth = reference.conv_epilogue(x.double(), weight.double(), None, spec, wide(e))
        eager = reference.conv_epilogue(x, weight, None, spec, e)
        ratios.append(rms(winograd(x, weight, None, (1, 1), (1, 1), e, tile) - truth) / rms(eager - truth))
    assert max(ratios) <= 1.25 and statistics.median(ratios) <= 1.0


@each_tile
def test_input_gradients_with_infinities(tile):
    """The convolution with the turned weight, which is turned again where an output is not finite."""
    weight, grad = torch.randn(21, 19, 3, 3), torch.randn(1, 21, 9, 10).contiguous(memory_format=torch.channels_last)
    for special in (0.5, torch.inf):
        grad[0, 3, 4, 5] = special
        geometry = True, tile[:2], tile.int16, None, (1, 1), (1, 1)
        dx = ops._winograd_epilogue(grad, weight, None, *geometry, *PLAIN)
        given = ops._winograd_epilogue(grad, weight, transform(weight, tile, True), *geometry, *PLAIN)
        torch.testing.assert_close(dx, given, rtol=0, atol=0, equal_nan=True)
        truth = F.conv_transpose2d(grad.double(), weight.double(), None, 1, 1)
        plain = F.conv_transpose2d(grad, weight, None, 1, 1)
        assert_tensor(dx, plain, truth, relative=4e-3 if tile.int16 else 4e-6)


def weight_gradient(grad: Tensor, x: Tensor, padding, dilation) -> Tensor:
    shape = [grad.shape[1], x.shape[1], 3, 3]
    weight = torch.empty(shape, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    geometry = (1, 1), padding, dilation, False, (0, 0), 1
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])[1]


@pytest.mark.parametrize("size", [(2, 2), (4, 2), (4, 4)], ids=str)
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(
    "channels, map, padding, dilation",
    [
        ((1, 1), (1, 1, 1), (1, 1), (1, 1)),
        ((19, 37), (3, 13, 29), (1, 1), (1, 1)),
        ((64, 16), (2, 7, 9), (2, 0), (2, 1)),
        ((16, 50), (1, 11, 12), (3, 4), (3, 5)),
        ((600, 40), (2, 5, 6), (1, 1), (1, 1)),  # more than the sums of all output channels at once
        ((40, 8), (5, 40, 41), (1, 1), (1, 1)),  # several blocks of tiles
    ],
    ids=str,
)
def test_weight_gradients(channels, map, padding, dilation, dtype, size):
    """The error is at most a few roundings of the largest value, where the direct one's is smaller."""
    nhwc = torch.channels_last
    x = torch.randn(map[0], channels[0], *map[1:]).to(dtype).contiguous(memory_format=nhwc)
    output = [n + 2 * p - 2 * d for n, p, d in zip(map[1:], padding, dilation)]
    grad = torch.randn(map[0], channels[1], *output).to(dtype).contiguous(memory_format=nhwc)
    dw = ops._winograd_weight_gradient(grad, x, padding, dilation, size)
    assert dw.dtype == dtype and dw.is_contiguous(memory_format=nhwc)
    truth = weight_gradient(grad.double(), x.double(), padding, dilation)
    wide_type = torch.float32 if dtype == torch.float16 else dtype  # which oneDNN lacks on many processors
    plain = weight_gradient(grad.to(wide_type), x.to(wide_type), padding, dilation).to(dtype)
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert_tensor(dw, plain, truth, ratio=1.25, relative=5e-6 + rounding)


@pytest.mark.parametrize("special", [torch.inf, torch.nan])
def test_weight_gradients_with_infinities(special):
    x, grad = torch.randn(2, 20, 9, 9), torch.randn(2, 24, 9, 9)
    x[0, 3, 4, 4] = special
    dw = ops._winograd_weight_gradient(grad, x, (1, 1), (1, 1), (4, 4))
    expected = weight_gradient(*(t.contiguous(memory_format=torch.channels_last) for t in (grad, x)), (1, 1), (1, 1))
    torch.testing.assert_close(dw, expected, equal_nan=True)


def test_the_number_of_threads_does_not_change_a_bit_of_a_weight_gradient():
    x, grad = torch.randn(2, 40, 23, 31), torch.randn(2, 70, 23, 31)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            results.append(ops._winograd_weight_gradient(grad, x, (1, 1), (1, 1), (4, 4)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_errors_of_the_weight_gradient():
    x, grad = torch.randn(1, 4, 5, 5), torch.randn(1, 8, 5, 5)
    good = dict(grad=grad, input=x, padding=(1, 1), dilation=(1, 1), tile=(4, 4))
    for change, message in (
        ({"grad": grad[0]}, r"grad: expected shape \[1, 0, 5, 5\]"),
        ({"grad": grad[..., 1:]}, r"grad: expected shape \[1, 8, 5, 5\] .*got \[1, 8, 5, 4\]"),
        ({"grad": grad.bfloat16()}, "grad: expected .*dtype Float, got .*BFloat16"),
        ({"input": x.double()}, "input: expected dtype .*Double"),
        ({"padding": (-1, 0)}, r"padding: .*\[-1, 0\]"),
        ({"tile": (3, 3)}, r"tile: expected .*\[3, 3\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops._winograd_weight_gradient(*(good | change).values())


@each_tile
def test_the_number_of_threads_does_not_change_a_bit(tile):
    input = torch.randn(2, 40, 23, 31).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(70, 40, 3, 3)
    small = input[:1, :, :5, :3].contiguous(memory_format=torch.channels_last)
    calls = [lambda x=x: winograd(x, weight, None, (1, 1), (1, 1), tile=tile) for x in (input, small)]
    threads, several = torch.get_num_threads(), [call() for call in calls]
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for call, result in zip(calls, several):
                assert torch.equal(call(), result)
    finally:
        torch.set_num_threads(threads)


def test_errors_of_winograd():
    input = torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 4, 3, 3)
    u = ops._winograd_weight(weight)
    good = dict(
        input=input, weight=weight, transformed=u, turned=False, tile=(2, 2), int16=False, bias=None, padding=(1, 1),
        dilation=(1, 1),
    )  # fmt: skip
    for change, message in (
        ({"input": input[0]}, "input: expected 4-D"),
        ({"input": input.double()}, "input: expected dtype .*Double"),
        ({"input": input.long()}, "input: expected dtype .*Long"),
        ({"transformed": weight}, r"transformed: expected .*\[1, 16, 4, 16\].* got .*\[8, 4, 3, 3\]"),
        ({"transformed": u.double()}, "transformed: .*got Double"),
        ({"transformed": u.short()}, "transformed: expected .*Float .*got Short"),
        ({"int16": True}, r"transformed: expected .*\[1, 16, 17, 32\]"),
        ({"tile": (4, 2)}, r"transformed: expected .*\[1, 24, 4, 16\]"),
        ({"tile": (2, 4)}, r"tile: expected .*\(4, 4\), got \[2, 4\]"),
        ({"transformed": u.transpose(1, 3)}, "transformed: .*contiguous"),
        ({"weight": torch.randn(17, 4, 3, 3)}, r"transformed: expected .*\[2, 16, 4, 16\]"),
        ({"weight": weight[:, :3]}, r"weight: expected .*C = .*4, got \[8, 3, 3, 3\]"),
        ({"weight": weight.bfloat16()}, "weight: expected dtype Float as input, got BFloat16"),
        ({"turned": True}, r"weight: expected .*K = .*4, got \[8, 4, 3, 3\]"),
        ({"bias": torch.zeros(4)}, r"bias: expected shape \[8\], got \[4\]"),
        ({"padding": (-1, 0)}, r"padding: .*\[-1, 0\]"),
        ({"dilation": (0, 1)}, r"dilation: .*\[0, 1\]"),
        ({"dilation": (4, 1)}, "input: expected a padded size of at least the dilated kernel's, 9, got 7"),
        ({"dilation": (2**62, 1)}, "dilation: "),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops._winograd_epilogue(*(good | change).values(), *Epilogue())
    for bad in (torch.randn(4, 4, 1, 1), torch.randn(4, 9), torch.ones(4, 4, 3, 3, dtype=torch.int32)):
        with pytest.raises(RuntimeError, match="weight: expected"):
            ops._winograd_weight(bad)
    with pytest.raises(RuntimeError, match=r"tile: expected .*\(4, 4\), got \[2, 4\]"):
        ops._winograd_weight(weight, False, (2, 4))
