"""Our launches through Triton's own path from arguments to the driver, without a GPU.

The compile gates build their variants by hand; here Triton itself reads a launch: tuples of constants, descriptors,
absent pointers, sizes that must not specialize. The driver is a stand-in with the checks of CUDA's.
"""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

from atrous.triton_kernels import gpus  # noqa: E402
from atrous.triton_kernels.conv import configs  # noqa: E402
from atrous.triton_kernels.conv import forward as conv  # noqa: E402

if not isinstance(conv.conv_epilogue_kernel, triton.JITFunction):
    pytest.skip("TRITON_INTERPRET=1: there is nothing to compile", allow_module_level=True)

import conv_gate  # noqa: E402
import standin  # noqa: E402
import standin_cases as cases  # noqa: E402

CHIPS = (80, 90, 100)
LAYERS = conv_gate.LAYERS | conv_gate.DEPTHWISE


@pytest.fixture(autouse=True)
def empty_caches():
    """Empties the in-memory caches, so that each test looks its kernels up in Triton's cache again."""
    modules = [module for name, module in sys.modules.items() if name.startswith("atrous.triton_kernels.")]
    for value in [value for module in modules for value in vars(module).values()]:
        if isinstance(value, triton.JITFunction):
            value.device_caches.clear()
        getattr(value, "cache_clear", lambda: None)()  # the launchers' plans


@pytest.fixture
def recorded():
    with standin.gpu(90) as recorded:
        yield recorded


def call(layer, batch=2, config=None):
    return cases.convolve(layer, config, torch.bfloat16, "tensor", "before", batch)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_launched(recorded, name):
    before = standin.library().counts
    y = call(LAYERS[name])
    assert y.is_cuda and standin.library().counts["launched"] == before["launched"] + 1
    assert recorded.calls == 1


def test_passes_of_training_are_launched(recorded):
    for name in cases.PRIMITIVES:
        cases.primitive(name, "nhwc", torch.bfloat16, "random", "before", 0.3, 2)
    assert recorded.calls == 4


def test_sizes_do_not_recompile_passes_of_training(recorded):
    for name in cases.PRIMITIVES:
        for batch in (1, 2, 3, 16):
            cases.primitive(name, "nhwc", torch.bfloat16, "random", "before", 0.3, batch)
    assert recorded.calls == 4


def test_sizes_do_not_recompile(recorded):
    """Triton would specialize on 1 and on multiples of 16; our launches declare that it must not."""
    layer = LAYERS["dilated"]
    pointers = next(config for config in configs.CONV if not config.descriptors)
    for batch, size in ((1, 9), (2, 16), (3, 17), (16, 32), (5, 1)):
        call(layer._replace(size=(size + 4, size), padding=(0, 2)), batch, pointers)
    assert recorded.calls == 1


def test_descriptors_compile_once_per_box(recorded):
    layer, config = LAYERS["dilated"], configs.CONV[1]
    assert config.descriptors
    for batch in (1, 3, 32, 128):
        for size in (7, 14, 28, 56):
            call(layer._replace(size=(size, size)), batch, config)
    assert 1 < recorded.calls <= len(configs.BOXES[config.block_n])


def test_chips_are_those_of_the_cost_models():
    assert {chip: gpu.shared for chip, gpu in standin.CHIPS.items()} == {
        chip: gpus.gpu(chip).shared << 10 for chip in standin.CHIPS
    }


# All launches, or a tenth of them

# The least fraction of a group's launches that run: few configs fit a stem, an odd number of channels or NCHW; sm_80
# has no descriptors.
LAUNCHED = dict.fromkeys(("stem", "odd", "NCHW", "NCHW stem"), 0.1) | {
    "grouped": 0.25, "depthwise": 0.75, "depthwise NCHW": 0.75, **dict.fromkeys(cases.PRIMITIVES, 1.0),
}  # fmt: skip


class Reached(Exception):
    """Raised when a launch reaches Triton."""


@pytest.mark.parametrize("chip", CHIPS)
def test_most_launches_are_not_refused(chip, monkeypatch):
    def reach(*_, **__):
        raise Reached

    monkeypatch.setattr(triton.JITFunction, "run", reach)
    with standin.gpu(chip):
        for group, make_cases in cases.GROUPS.items():
            launched = total = 0
            for case in make_cases(group):
                total += 1
                try:
                    case.launch(2)
                except Reached:
                    launched += 1
                except ValueError as error:
                    assert str(error).startswith("config: expected")
            least = LAUNCHED.get(group, 0.7 if chip >= 90 else 0.25)
            assert launched >= least * total > 0, f"sm_{chip} {group}: {launched} of {total}"


def sample(group: str, chip: int, whole: bool) -> list[cases.Case]:
    """All cases of a group, or a tenth of them chosen by GATES_SEED, which `make gates` prints."""
    listed = list(cases.GROUPS[group](group))
    draw = random.Random(f"{os.environ.get('GATES_SEED', '0')} {group} {chip}")
    return listed if whole else draw.sample(listed, -(-len(listed) // 10))


@pytest.mark.gate
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("group", cases.GROUPS)
def test_every_launch(group, chip, whole):
    """Each launch compiles, fits the chip, passes the driver's checks and does not recompile for another batch."""
    wrong = []
    with standin.gpu(chip) as recorded:
        for case in sample(group, chip, whole):
            before, sizes = recorded.calls, (8, 24)
            try:
                for batch in sizes:
                    case.launch(batch)
            except ValueError as error:
                if not str(error).startswith("config: expected"):
                    wrong.append(f"sm_{chip} {case.label}: {error}")
                continue
            except Exception as error:
                wrong.append(f"sm_{chip} {case.label}: {type(error).__name__}: {error}")
                continue
            if (compiled := recorded.calls - before) > (expected := case.kernels(sizes)):
                wrong.append(f"sm_{chip} {case.label}: batches {sizes}: expected {expected} kernels, got {compiled}")
    assert not wrong, "\n".join(wrong)


# The stand-in refuses what CUDA's driver refuses


def encode(box=(1, 8, 8, 64), sizes=(2, 16, 16, 64), strides=(16384, 1024, 64, 1), address=1 << 44, swizzle=3):
    """A descriptor of a bf16 tensor, as Triton asks for it."""
    utils = standin.driver.active.utils
    fill = getattr(utils, "fill_tma_descriptor", None) or utils.fill_tma_descriptor_tiled
    return fill(address, swizzle, 2, 9, list(box), list(sizes), list(strides), 0)


def test_a_descriptor_that_cuda_accepts(recorded):
    before = standin.library().counts["encoded"]
    encode()
    assert standin.library().counts["encoded"] == before + 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"box": (1, 8, 257, 64)}, "box of 1 to 256, got 257"),
        ({"box": (1, 8, 8, 128)}, "at most 128 with this swizzle, got 256"),
        ({"box": (1, 8, 8, 4)}, "multiple of 16 bytes"),
        ({"strides": (16384, 1024, 65, 1)}, "multiples of 16 bytes below 2\\*\\*40, got 130"),
        ({"strides": (1 << 39, 1024, 64, 1)}, "below 2\\*\\*40"),
        ({"sizes": (2, 16, (1 << 32) + 1, 64)}, "sizes from 1 to 2\\*\\*32"),
        ({"sizes": (2, 0, 16, 64)}, "sizes from 1 to 2\\*\\*32, got 0"),
        ({"address": (1 << 44) + 8}, "multiple of 16 bytes"),
        ({"address": 4096}, "expected GPU memory"),
    ],
)
def test_a_descriptor_that_cuda_refuses(recorded, change, message):
    with pytest.raises(RuntimeError, match=message):
        encode(**change)


@triton.jit
def copy_kernel(x_ptr, y_ptr, SIZE: triton.language.constexpr):
    offset = triton.language.arange(0, SIZE)
    triton.language.store(y_ptr + offset, triton.language.load(x_ptr + offset))


def test_memory_of_the_cpu_is_refused(recorded):
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        copy_kernel[(1,)](torch.empty(64), torch.empty(64, device="cuda"), SIZE=64)


def test_code_for_another_chip_is_refused(recorded):
    x = torch.empty(64, device="cuda")
    kernel = copy_kernel[(1,)](x, x, SIZE=64)
    standin.library().use(100)
    with pytest.raises(RuntimeError, match="expected code for sm_100, got sm_90"):
        standin.driver.active.utils.load_binary(kernel.name, kernel.kernel, 0, 0)
