"""Compiles the Triton epilogue in every config for sm_80, sm_90 and sm_100 without a GPU; see compile_gate.py.

`make test` compiles every config for one chip and the preferred ones for all; `make gates` each config for one drawn
chip, `make gates-all` every combination.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import compile_gate as gate  # noqa: E402
import triton.language as tl  # noqa: E402

from atrous.core.spec import Epilogue  # noqa: E402
from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.pointwise import (  # noqa: E402
    configs,
    operands,
)
from atrous.triton_kernels.pointwise import forward as pointwise  # noqa: E402

if not isinstance(pointwise.epilogue_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

CHIPS = (80, 90, 100)
CONFIGS = [(layout, config) for layout, listed in configs.POINTWISE.items() for config in listed]
PREFERRED = [(layout, listed[0]) for layout, listed in configs.POINTWISE.items()]
VECTORS = ("mean_ptr", "var_ptr", "gamma_ptr", "beta_ptr", "slope_ptr")
# For each layout a shape whose rows are whole 16-byte accesses in every dtype, and one whose rows never are.
SHAPES = {
    "nhwc": ((1, 64, 2, 2), (1, 31, 2, 2)),
    "nchw": ((1, 2, 8, 8), (1, 2, 33, 33)),
    "nchw_flat": ((2, 16, 7, 7), (1, 3, 7, 7)),
}


def epilogue_variant(
    layout, config, dtype, slope_kind="tensor", residual="before", norm=True, vectors=torch.float32, even=True,
    dropout=0.0,
):  # fmt: skip
    """The variant that forward.epilogue launches for such a tensor in this config."""
    z = torch.zeros(SHAPES[layout][not even], dtype=dtype)
    if layout == "nhwc":
        z = z.contiguous(memory_format=torch.channels_last)
    vector, seed = torch.ones(z.shape[1], dtype=vectors), torch.zeros(2, dtype=torch.int64)
    bn, added = [vector if norm else None] * 4, None if residual == "none" else torch.zeros_like(z)
    recorder = gate.Recorder(pointwise.epilogue_kernel)
    configured = mock.patch.object(operands, "pointwise_config", lambda key: config)
    with mock.patch.object(pointwise, "epilogue_kernel", recorder), configured:
        e = Epilogue(*bn, vector, added, slope_kind, 1e-5, 0.1, 0.3, residual == "after", seed, dropout)
        pointwise.epilogue(z, e)
    assert recorder.arguments["LAYOUT"] == layout
    per_thread = config.block_rows * config.block_cols // (32 * config.num_warps)
    label = f"epilogue {layout} {tuple(config)} {dtype} {slope_kind} {residual}"
    wide = ("z_ptr", "y_ptr", *(() if residual == "none" else ("residual_ptr",))) if even else ()
    # at least two elements of a thread share a channel's value
    most = dict.fromkeys(VECTORS, per_thread // 2) if even else {}
    return gate.capture(recorder, pointwise.__name__, label=label, wide=wide, most=most)


def complaints(jobs):
    return [line for job, report in zip(jobs, gate.build_all(jobs)) for line in gate.check(*job, report)]


def test_every_config():
    """On sm_90 with the most live values of an epilogue: a residual, and loaded or random slopes."""
    choices = [(torch.bfloat16, "random"), (torch.bfloat16, "tensor"), (torch.float64, "tensor")]
    assert complaints([(epilogue_variant(*config, *choice), 90) for config in CONFIGS for choice in choices]) == []


def test_every_chip():
    """The preferred config of each layout in the common dtypes."""
    dtypes = (torch.float16, torch.float32)
    jobs = [(epilogue_variant(*c, dtype, "tensor"), chip) for c in PREFERRED for dtype in dtypes for chip in CHIPS]
    assert complaints(jobs) == []


def test_rare_variants():
    """No BatchNorm; vectors in z's dtype or fp64; dropout; 64-bit offsets; rows that are not whole 16-byte accesses."""
    jobs = []
    for layout, config in PREFERRED:
        vectors = ({"vectors": torch.bfloat16}, {"vectors": torch.float64})
        for change in ({"norm": False}, *vectors, {"even": False}, {"dropout": 0.3}):
            jobs.append((epilogue_variant(layout, config, torch.bfloat16, **change), 90))
        with mock.patch.object(launch, "INT32_ELEMENTS", 0):
            variant = epilogue_variant(layout, config, torch.bfloat16, "random")
        assert variant.constants["OFFSET"] == tl.int64
        jobs.append((variant, 90))
    assert complaints(jobs) == []


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("layout, config", CONFIGS, ids=str)
def test_everything(chip, layout, config, whole):
    """Each dtype with the fullest epilogues; every other slope and residual for two or three of the twelve pairs of
    chip and dtype. Dropout on one chip: it draws from the same generator as slopes."""
    first = CHIPS.index(chip) * len(operands.DTYPES) + CONFIGS.index((layout, config))
    variants = [
        epilogue_variant(layout, config, dtype, *choice)
        for i, dtype in enumerate(operands.DTYPES)
        for choice in gate.epilogues(first + i, whole)
    ]
    if chip == 90:
        dropped = itertools.product(operands.DTYPES, ("tensor", "random"))
        variants += [epilogue_variant(layout, config, *choice, dropout=0.3) for choice in dropped]
    assert complaints([(variant, chip) for variant in variants]) == []


def test_turns_leave_nothing_out():
    """Five consecutive turns cover everything; a config with descriptors has six, of two chips and three dtypes."""
    for whole, turns in ((False, 5), (True, 1)):
        compiled = {choice for turn in range(turns) for choice in gate.epilogues(7 + turn, whole)}
        assert compiled == set(itertools.product(("relu", "number", "tensor", "random"), ("none", "before", "after")))


# The gate must refuse each bad kernel, for its own reason only.

HERE = __name__


@triton.jit
def dot_kernel(x_ptr, y_ptr, steps, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """y = the sum over the steps of x's tile times its transpose: to the compiler, the main loop of a convolution."""
    row, k = tl.arange(0, SIZE)[:, None], tl.arange(0, DEPTH)[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(steps):
        x = tl.load(x_ptr + row * 4096 + step * DEPTH + k)
        total = tl.dot(x, x.T, total)
    tl.store(y_ptr + row * SIZE + tl.arange(0, SIZE)[None, :], total)


def dot_variant(size, depth, stages, patterns=()):
    recorder = gate.Recorder(dot_kernel)
    x, y = torch.zeros(16, dtype=torch.bfloat16), torch.zeros(16)
    recorder[(1,)](x, y, 64, SIZE=size, DEPTH=depth, num_warps=8, num_stages=stages)
    return gate.capture(recorder, HERE, label="dot", patterns=patterns)


def refused(variant, chip):
    return gate.check(variant, chip, gate.build(variant, chip))


def test_spills_are_refused():
    config = configs.Pointwise(16, 128, 1)  # 64 elements per thread: 128 registers each for z and residual
    (line,) = refused(epilogue_variant("nhwc", config, torch.float64), 90)
    assert "expected no spills" in line


@pytest.mark.parametrize("chip", CHIPS)
def test_too_much_shared_memory_is_refused(chip):
    (line,) = refused(dot_variant(128, 128, 8), chip)
    assert "bytes of shared memory, got" in line
    assert refused(dot_variant(128, 32, 3), chip) == []


def test_scalar_accesses_are_refused():
    config = configs.POINTWISE["nhwc"][0]
    with mock.patch.object(operands, "gcd", lambda *_: 1):  # the launcher does not say what divides the columns
        lines = refused(epilogue_variant("nhwc", config, torch.float16), 90)
    assert [line.split(": ")[1] for line in lines] == ["z_ptr", "y_ptr", "residual_ptr"]
    assert all("expected accesses of 16 bytes, got {2: 16}" in line for line in lines)


def test_unaligned_pointer_is_refused():
    variant = epilogue_variant("nchw", configs.POINTWISE["nchw"][0], torch.float16)
    aligned = tuple(name for name in variant.aligned if name != "residual_ptr")
    (line,) = refused(replace(variant, aligned=aligned), 80)
    assert "residual_ptr: expected accesses of 16 bytes" in line


def test_a_vector_value_loaded_per_element_is_refused():
    variant = epilogue_variant("nchw", configs.POINTWISE["nchw"][0], torch.float16)
    (line,) = refused(replace(variant, most={"mean_ptr": 1}), 90)
    assert "mean_ptr: expected at most 1 accesses per thread, got 2" in line


@pytest.mark.parametrize("chip, instruction", [(80, r"mma\.sync"), (90, r"wgmma\.mma_async"), (100, r"tcgen05\.mma")])
def test_missing_instructions_are_refused(chip, instruction):
    assert refused(dot_variant(128, 32, 3, (instruction,)), chip) == []
    (line,) = refused(dot_variant(128, 32, 3, ("cp.async.bulk.tensor",)), chip)
    assert "expected 'cp.async.bulk.tensor' in the PTX" in line
