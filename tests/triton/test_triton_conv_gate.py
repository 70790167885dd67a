"""Every config of the convolution, compiled for sm_80, sm_90 and sm_100 without a card; see conv_gate.py.

No spills, shared memory that the chip has, its tensor-core instruction in the main loop, bulk copies where descriptors
promise them, 16-byte accesses where pointers can have them. `make test` compiles every config for one chip and a few
for all; marker `gate` compiles the product.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")

import compile_gate as gate  # noqa: E402
import conv_gate  # noqa: E402
from conv_gate import BULK, CHIPS, DEPTHWISE, LAYERS, PRODUCT, statistics_variant, variant  # noqa: E402

from atrous.triton_kernels import launch  # noqa: E402
from atrous.triton_kernels.conv import configs  # noqa: E402
from atrous.triton_kernels.conv import forward as conv  # noqa: E402
from atrous.triton_kernels.conv.configs import CONV, Conv  # noqa: E402
from atrous.triton_kernels.gpus import gpu  # noqa: E402

if not isinstance(conv.conv_epilogue_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SPLIT = [config._replace(splits=2) for config in CONV]
SPLIT_LAYERS = ("dilated", "strided", "NCHW")
PREFERRED = [Conv(128, 128, 128, 8, 4, descriptors=True), Conv(64, 128, 64, 8, 4)]


def jobs(layers, chips, listed=CONV, make=variant, **more):
    """(variant, chip) of each config that takes a layer."""
    found = [
        (made, chip)
        for name, chip, config in itertools.product(layers, chips, listed)
        if (made := make(name, (LAYERS | DEPTHWISE)[name], config, chip, **more))
    ]
    assert found
    return found


def complaints(found):
    return [line for job, report in zip(found, gate.build_all(found)) for line in gate.check(*job, report)]


def test_every_config():
    """On sm_90, with a residual and a slope for each channel; with and without splits."""
    found = jobs(["dilated"], [90], [*CONV, *SPLIT])
    assert {made.label.split(" torch")[0] for made, _ in found} >= {f"conv dilated {c.describe()}" for c in CONV}
    assert complaints(found) == []


def test_every_layer_and_chip():
    """The preferred configs where they fit, else the first that does."""
    found = []
    for name, chip in itertools.product(LAYERS, CHIPS):
        fitting = jobs([name], [chip])
        preferred = [job for job in fitting if any(f" {c.describe()} " in job[0].label for c in PREFERRED)]
        found += preferred or fitting[:1]
    assert complaints(found) == []


def test_cards_with_little_shared_memory():
    """What fits 99 KiB, on Ampere's and Blackwell's smaller cards; the estimate that decides it is never too low."""
    wrong = complaints(jobs(["dilated"], [86, 120]))
    assert [line for line in wrong if "expected no spills, got 8 bytes" not in line] == []  # Triton 3.6 on sm_120
    for chip in (80, 90, 100):
        for config in CONV:
            if made := variant("dilated", LAYERS["dilated"], config, chip):
                assert gate.build(made, chip).shared <= config.shared, made.label


def test_depthwise():
    for name, layer in DEPTHWISE.items():
        listed = configs.DEPTHWISE["last" if layer.memory_format == conv_gate.NHWC else "planes"]
        assert complaints(jobs([name], CHIPS, listed)) == []


def test_statistics():
    assert complaints(jobs(["dilated", "odd"], [90], [c._replace(waves=2) for c in CONV], statistics_variant)) == []


def test_rare_variants():
    """No BatchNorm; fp32 without tensor cores; drawn slopes; 64-bit offsets."""
    found = jobs(["dilated", "NCHW"], [90], PREFERRED, norm=False)
    found += jobs(["dilated"], CHIPS, dtype=torch.float32, precision="ieee")
    found += jobs(["dilated", "stem"], [90], slope_kind="random")
    with mock.patch.object(launch, "INT32_ELEMENTS", 0):
        found += jobs(["dilated", "odd", "stem"], [90], PREFERRED)
    assert found[-1][0].constants["T"].offset == triton.language.int64
    assert complaints(found) == []


@pytest.mark.gate
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_config_of_every_layer(name, chip):
    assert complaints(jobs([name], [chip], [*CONV, *(SPLIT if name in SPLIT_LAYERS else ())])) == []
    assert complaints(jobs([name], [chip], [c._replace(waves=2) for c in CONV], statistics_variant)) == []


@pytest.mark.gate
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_epilogue(chip, dtype, whole):
    """Each config with what holds the most; in two of the six or nine turns that chips and dtypes make, or in one, with
    every other slope and residual."""
    turn = CHIPS.index(chip) * len(DTYPES) + DTYPES.index(dtype)
    found = []
    for i, config in enumerate(CONV):
        for slope_kind, residual in gate.epilogues(turn + i, whole):
            found.append(
                variant("dilated", LAYERS["dilated"], config, chip, dtype, slope_kind=slope_kind, residual=residual)
            )
    assert complaints([(made, chip) for made in found if made]) == []


@pytest.mark.gate
@pytest.mark.parametrize("chip", CHIPS)
def test_every_dtype_of_splits_statistics_and_depthwise(chip):
    for dtype in DTYPES:
        found = jobs(["dilated"], [chip], SPLIT, dtype=dtype)
        found += jobs(["dilated"], [chip], [c._replace(waves=2) for c in CONV], statistics_variant, dtype=dtype)
        found += jobs(["depthwise"], [chip], configs.DEPTHWISE["last"], dtype=dtype)
        found += jobs(["depthwise NCHW"], [chip], configs.DEPTHWISE["planes"], dtype=dtype, slope_kind="random")
        assert complaints(found) == []


# The gate has to refuse a config that must not be shipped, each for its own reason.


def refused(config, chip=90, name="dilated", **more):
    """The gate's complaints about a config that somebody adds to the list, and that no constraint holds back."""
    unheld = {"most_elements": lambda key, config: 1024, "gpu": lambda chip: gpu(chip)._replace(shared=1024)}
    with mock.patch.multiple(configs, CONV=(*CONV, config), **unheld):
        made = variant(name, LAYERS[name], config, chip, **more)
    return gate.check(made, chip, gate.build(made, chip))


def test_a_tile_that_spills_is_refused():
    (line,) = refused(Conv(128, 256, 128, 4, 3, descriptors=True))
    assert "expected no spills, got" in line


def test_a_pipeline_that_shared_memory_cannot_hold_is_refused():
    (line,) = refused(Conv(128, 128, 128, 8, 8, descriptors=True))
    assert f"expected at most {gate.SHARED_MEMORY[90]} bytes of shared memory, got" in line


def test_a_tile_that_wgmma_does_not_take_is_refused():
    product, in_flight = refused(Conv(32, 64, 64, 4, 4))
    assert f"expected {PRODUCT[90]!r} in a loop" in product and f"{conv_gate.IN_FLIGHT!r} in a loop" in in_flight


def test_tensor_cores_without_tf32_are_not_promised_and_their_absence_is_seen():
    config = Conv(64, 64, 64, 8, 4)
    made = variant("dilated", LAYERS["dilated"], config, 90, dtype=torch.float32, precision="ieee")
    assert made.loop_patterns == (conv_gate.ASYNC,)  # and the product is nobody's promise
    tf32 = variant("dilated", LAYERS["dilated"], config, 90, dtype=torch.float32)
    report = gate.build(made, 90)
    assert gate.check(made, 90, report) == []
    assert any("wgmma" in line for line in gate.check(tf32, 90, report))


def test_bulk_copies_are_looked_for_in_loops():
    made = variant("dilated", LAYERS["dilated"], PREFERRED[0], 90)
    pointers = variant("dilated", LAYERS["dilated"], PREFERRED[1], 90)
    assert BULK in made.loop_patterns
    load, store = gate.check(made, 90, gate.build(pointers, 90))
    assert "global" in load + store and "bulk" in load + store


def test_the_resource_table():
    with mock.patch.object(configs, "CONV", tuple(PREFERRED)):
        text = conv_gate.rewritten("a\n<!-- gate: begin -->\nold\n<!-- gate: end -->\nb\n")
    head, _, descriptors, pointers, tail = text.split("gate: ")[1].splitlines()[1:]
    assert descriptors.startswith("| 128x128x128B w8 s4 tma |  | ") and descriptors.count("wgmma") == 1  # no sm_80
    assert all(name in pointers for name in ("mma.sync", "wgmma", "tcgen05")) and "spilled" not in text


@pytest.mark.gate
def test_the_readme_s_table_is_that_of_these_sources():
    if triton.__version__ != gate.pinned("triton"):
        pytest.skip("the table is of the triton that the development set pins")
    readme = (conv_gate.ROOT / "README.md").read_text()
    assert conv_gate.rewritten(readme) == readme, "make kernel-table"
