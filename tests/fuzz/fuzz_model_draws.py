"""Hypothesis strategies of the fuzzer's models: one to three blocks of convolution, BatchNorm, activation, residual."""

from __future__ import annotations

from fuzz_models import ACTS, MODES, VIEWS, Block, Model
from hypothesis import strategies as st

WIDTHS = (1, 3, 4, 6, 8)
KERNELS = ((1, 1), (3, 3), (3, 3), (1, 3), (5, 1))
DILATIONS = ((1, 1), (1, 1), (2, 2), (1, 3), (4, 4))
WINOGRAD = 24  # channels of 3x3 convolutions that a frozen model runs as Winograd's on maps of 28x28


@st.composite
def model_cases(draw, backend: str, device: str = "cpu") -> Model:
    """The models of one backend."""
    mode = draw(st.sampled_from(MODES))
    dtype = draw(st.sampled_from(("float32", "bfloat16") + ("float64",) * (backend != "triton")))
    wide = draw(st.sampled_from((False,) * 5 + (True,)))
    channels = WINOGRAD if wide else draw(st.sampled_from(WIDTHS))
    extent = st.integers(28, 31) if wide else st.integers(4, 12)  # batch statistics of 8 values and more
    width, blocks = channels, []
    for _ in range(draw(st.integers(1, 3))):
        blocks.append(draw(wide_blocks(mode) if wide else any_blocks(width, mode)))
        width = blocks[-1].width
    return Model(
        backend,
        device,
        mode,
        dtype,
        draw(st.integers(2, 3)),
        channels,
        (draw(extent), draw(extent)),
        draw(st.sampled_from(list(VIEWS))),
        tuple(blocks),
        recompute=draw(st.booleans()),
        values=draw(st.integers(0, (1 << 32) - 1)),
    )


@st.composite
def any_blocks(draw, channels: int, mode: str) -> Block:
    """A block after one of so many channels. Slopes and dropout that training draws have no reference."""
    width, train = draw(st.sampled_from((channels, *WIDTHS))), mode == "train"
    eps, order = draw(st.sampled_from((None, 1e-5, 1e-3, 0.1))), draw(st.sampled_from(("post", "post", "post", "pre")))
    acts = [act for act in ACTS if not (train and act == "random")]
    acts = [act for act in acts if not (act == "relu in place" and order == "pre" and eps is None)]  # x itself
    divisors = sorted({1, 2, 3, channels})
    return Block(
        width,
        draw(st.sampled_from(KERNELS)),
        draw(st.sampled_from((1, 1, 1, 2))),
        draw(st.sampled_from(DILATIONS)),
        draw(st.sampled_from([groups for groups in divisors if channels % groups == width % groups == 0])),
        bias=draw(st.booleans()),
        eps=eps,
        affine=draw(st.sampled_from((True, True, False))),
        act=draw(st.sampled_from(acts)),
        residual=draw(st.sampled_from(("none", "before", "after"))),
        order=order,
        dropout=0.0 if train else draw(st.sampled_from((0.0, 0.5))),
    )


@st.composite
def wide_blocks(draw, mode: str) -> Block:
    """A block of Winograd's channels, with 3x3 kernels."""
    block = draw(any_blocks(WINOGRAD, mode))
    return block._replace(width=WINOGRAD, kernel=(3, 3), stride=1, dilation=(1, 1), groups=1)
