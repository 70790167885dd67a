"""Compiles every config of the Triton convolution for sm_80, sm_90 and sm_100 without a GPU; see conv_gate.py.

Checks: no spills, shared memory within the chip's limit, the chip's tensor-core instruction in the main loop, bulk
copies with descriptors, 16-byte accesses with pointers where possible. `make test` compiles every config for one chip
and a few for all; `make gates` a drawn third of the combinations; `make gates-all` every combination.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import compile_gate as gate  # noqa: E402
import conv_gate  # noqa: E402
from conv_gate import BULK, CHIPS, DEPTHWISE, LAYERS, MMA, statistics_variant, variant  # noqa: E402

from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.conv import configs  # noqa: E402
from atrous.triton_kernels.conv import forward as conv  # noqa: E402
from atrous.triton_kernels.conv.configs import CONV, Conv  # noqa: E402
from atrous.triton_kernels.gpus import gpu  # noqa: E402

if not isinstance(conv.conv_epilogue_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

SPLIT = [config._replace(splits=2) for config in CONV]
SPLIT_LAYERS = ("dilated", "strided", "NCHW")
PREFERRED = [Conv(128, 128, 128, 8, 4, descriptors=True), Conv(64, 128, 64, 8, 4)]


def jobs(layers, chips, listed=CONV, make=variant, **more):
    """(variant, chip) for each config that fits a layer."""
    builds = [
        (kernel, chip)
        for name, chip, config in itertools.product(layers, chips, listed)
        if (kernel := make(name, (LAYERS | DEPTHWISE)[name], config, chip, **more))
    ]
    assert builds
    return builds


def complaints(builds):
    return [line for job, report in zip(builds, gate.build_all(builds)) for line in gate.check(*job, report)]


def test_every_config():
    """On sm_90, with a residual and a slope for each channel; with and without splits."""
    builds = jobs(["dilated"], [90], [*CONV, *SPLIT])
    assert {kernel.label.split(" torch")[0] for kernel, _ in builds} >= {f"conv dilated {c.describe()}" for c in CONV}
    assert complaints(builds) == []


def test_every_layer_and_chip():
    """The preferred configs if they fit, else the first that does."""
    builds = []
    for name, chip in itertools.product(LAYERS, CHIPS):
        fitting = jobs([name], [chip])
        preferred = [job for job in fitting if any(f" {c.describe()} " in job[0].label for c in PREFERRED)]
        builds += preferred or fitting[:1]
    assert complaints(builds) == []


def test_gpus_with_little_shared_memory():
    """The configs that fit 99 KiB on smaller Ampere and Blackwell GPUs; a config's estimate is never too low."""
    wrong = complaints(jobs(["dilated"], [86, 120]))
    assert [line for line in wrong if "expected no spills, got 8 bytes" not in line] == []  # Triton 3.6 on sm_120
    for chip in (80, 90, 100):
        for config in CONV:
            if kernel := variant("dilated", LAYERS["dilated"], config, chip):
                assert gate.build(kernel, chip).shared <= config.shared, kernel.label


def test_depthwise():
    for name, layer in DEPTHWISE.items():
        listed = configs.DEPTHWISE["nhwc" if layer.memory_format == conv_gate.NHWC else "nchw"]
        assert complaints(jobs([name], CHIPS, listed)) == []


def test_statistics():
    assert complaints(jobs(["dilated", "odd"], [90], [c._replace(waves=2) for c in CONV], statistics_variant)) == []


def test_rare_variants():
    """No BatchNorm; fp32 without tensor cores; random slopes; 64-bit offsets."""
    builds = jobs(["dilated", "NCHW"], [90], PREFERRED, norm=False)
    builds += jobs(["dilated"], CHIPS, dtype=torch.float32, precision="ieee")
    builds += jobs(["dilated", "stem"], [90], slope_kind="random")
    with mock.patch.object(launch, "INT32_ELEMENTS", 0):
        builds += jobs(["dilated", "odd", "stem"], [90], PREFERRED)
    assert builds[-1][0].constants["T"].offset == triton.language.int64
    assert complaints(builds) == []


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_config_of_every_layer(name, chip):
    assert complaints(jobs([name], [chip], [*CONV, *(SPLIT if name in SPLIT_LAYERS else ())])) == []
    assert complaints(jobs([name], [chip], [c._replace(waves=2) for c in CONV], statistics_variant)) == []


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", configs.DTYPES, ids=str)
def test_every_epilogue(chip, dtype, whole):
    """Each config with the fullest epilogues; every other slope and residual in one or two of the six or nine turns of
    chips and dtypes."""
    turn = CHIPS.index(chip) * len(configs.DTYPES) + configs.DTYPES.index(dtype)
    builds = []
    for i, config in enumerate(CONV):
        for slope_kind, residual in gate.epilogues(turn + i, whole):
            builds.append(
                variant("dilated", LAYERS["dilated"], config, chip, dtype, slope_kind=slope_kind, residual=residual)
            )
    assert complaints([(kernel, chip) for kernel in builds if kernel]) == []


@pytest.mark.gate
@pytest.mark.drawn(3)
@pytest.mark.parametrize("chip", CHIPS)
def test_every_dtype_of_splits_statistics_and_depthwise(chip):
    for dtype in configs.DTYPES:
        builds = jobs(["dilated"], [chip], SPLIT, dtype=dtype)
        builds += jobs(["dilated"], [chip], [c._replace(waves=2) for c in CONV], statistics_variant, dtype=dtype)
        builds += jobs(["depthwise"], [chip], configs.DEPTHWISE["nhwc"], dtype=dtype)
        builds += jobs(["depthwise NCHW"], [chip], configs.DEPTHWISE["nchw"], dtype=dtype, slope_kind="random")
        assert complaints(builds) == []


# The gate must refuse each bad config for its own reason.


def refused(config, chip=90, name="dilated", **more):
    """The gate's complaints about a config that is added to the list and that no constraint excludes."""
    unconstrained = {"max_accumulators": lambda key, config: 1024, "gpu": lambda chip: gpu(chip)._replace(shared=1024)}
    with mock.patch.multiple(configs, CONV=(*CONV, config), **unconstrained):
        kernel = variant(name, LAYERS[name], config, chip, **more)
    return gate.check(kernel, chip, gate.build(kernel, chip))


def test_a_tile_that_spills_is_refused():
    (line,) = refused(Conv(128, 256, 128, 4, 3, descriptors=True))
    assert "expected no spills, got" in line


def test_a_pipeline_that_shared_memory_cannot_hold_is_refused():
    (line,) = refused(Conv(128, 128, 128, 8, 8, descriptors=True))
    assert f"expected at most {gate.SHARED_MEMORY[90]} bytes of shared memory, got" in line


def test_a_tile_that_wgmma_does_not_support_is_refused():
    mma, in_flight = refused(Conv(32, 64, 64, 4, 4))
    assert f"expected {MMA[90]!r} in a loop" in mma and f"{conv_gate.IN_FLIGHT!r} in a loop" in in_flight


def test_tensor_cores_are_required_in_tf32_and_not_in_ieee():
    config = Conv(64, 64, 64, 8, 4)
    kernel = variant("dilated", LAYERS["dilated"], config, 90, dtype=torch.float32, precision="ieee")
    assert kernel.loop_patterns == (conv_gate.ASYNC,)
    tf32 = variant("dilated", LAYERS["dilated"], config, 90, dtype=torch.float32)
    report = gate.build(kernel, 90)
    assert gate.check(kernel, 90, report) == []
    assert any("wgmma" in line for line in gate.check(tf32, 90, report))


def test_bulk_copies_are_required_in_loops():
    kernel = variant("dilated", LAYERS["dilated"], PREFERRED[0], 90)
    pointers = variant("dilated", LAYERS["dilated"], PREFERRED[1], 90)
    assert BULK in kernel.loop_patterns
    load, store = gate.check(kernel, 90, gate.build(pointers, 90))
    assert "global" in load + store and "bulk" in load + store


def test_the_resource_table():
    with mock.patch.object(configs, "CONV", tuple(PREFERRED)):
        text = conv_gate.rewritten("a\n<!-- gate: begin -->\nold\n<!-- gate: end -->\nb\n")
    head, _, descriptors, pointers, tail = text.split("gate: ")[1].splitlines()[1:]
    assert descriptors.startswith("| 128x128x128B w8 s4 tma |  | ") and descriptors.count("wgmma") == 1  # no sm_80
    assert all(name in pointers for name in ("mma.sync", "wgmma", "tcgen05")) and "spilled" not in text


@pytest.mark.gate
def test_the_documented_table_is_that_of_these_sources():
    if triton.__version__ != gate.pinned("triton"):
        pytest.skip("the table is that of the pinned Triton version")
    document = (conv_gate.ROOT / "docs/triton-kernels.md").read_text()
    assert conv_gate.rewritten(document) == document, "make kernel-table"
