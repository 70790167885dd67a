"""What Triton's own path does with our launches, from arguments to the driver, on chips that are not here.

The compile gates build their variants by hand; here Triton itself reads a launch: tuples of constants, descriptors,
absent pointers, sizes that must not become part of the code. The driver is a stand-in that refuses what CUDA's refuses.
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
def forgotten():
    """No kernel is known from another test of this process: each asks Triton's cache again."""
    modules = [module for name, module in sys.modules.items() if name.startswith("atrous.triton_kernels.")]
    for value in [value for module in modules for value in vars(module).values()]:
        if isinstance(value, triton.JITFunction):
            value.device_caches.clear()
        getattr(value, "cache_clear", lambda: None)()  # of a launcher's plans


@pytest.fixture
def asked():
    with standin.gpu(90) as asked:
        yield asked


def call(layer, batch=2, config=None):
    return cases.convolve(layer, config, torch.bfloat16, "tensor", "before", batch)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_launched(asked, name):
    before = standin.library().counts
    y = call(LAYERS[name])
    assert y.is_cuda and standin.library().counts["launched"] == before["launched"] + 1
    assert asked.calls == 1


def test_passes_of_training_are_launched(asked):
    for name in cases.PRIMITIVES:
        cases.primitive(name, "last", torch.bfloat16, "random", "before", 0.3, 2)
    assert asked.calls == 4


def test_sizes_do_not_recompile_what_trains(asked):
    for name in cases.PRIMITIVES:
        for batch in (1, 2, 3, 16):
            cases.primitive(name, "last", torch.bfloat16, "random", "before", 0.3, batch)
    assert asked.calls == 4


def test_sizes_do_not_recompile(asked):
    """1, which Triton would make a constant, and multiples of 16, which it would build on, are sizes as others are."""
    layer = LAYERS["dilated"]
    pointers = next(config for config in configs.CONV if not config.descriptors)
    for batch, size in ((1, 9), (2, 16), (3, 17), (16, 32), (5, 1)):
        call(layer._replace(size=(size + 4, size), padding=(0, 2)), batch, pointers)
    assert asked.calls == 1


def test_descriptors_compile_once_a_box(asked):
    layer, config = LAYERS["dilated"], configs.CONV[1]
    assert config.descriptors
    for batch in (1, 3, 32, 128):
        for size in (7, 14, 28, 56):
            call(layer._replace(size=(size, size)), batch, config)
    assert 1 < asked.calls <= len(configs.BOXES[config.block_n])


def test_chips_are_those_of_the_cost_models():
    assert {chip: found.shared for chip, found in standin.CHIPS.items()} == {
        chip: gpus.gpu(chip).shared << 10 for chip in standin.CHIPS
    }


# Everything, or a tenth of it

# Of a group's launches at least this share is none that its config refuses: few tiles fit a stem, an odd number of
# channels or NCHW; sm_80 has no descriptors.
LAUNCHED = dict.fromkeys(("stem", "odd", "NCHW", "NCHW stem"), 0.1) | {
    "grouped": 0.25, "depthwise": 0.75, "depthwise NCHW": 0.75, **dict.fromkeys(cases.PRIMITIVES, 1.0),
}  # fmt: skip


class Reached(Exception):
    """A launch came as far as Triton."""


@pytest.mark.parametrize("chip", CHIPS)
def test_what_is_refused_is_not_everything(chip, monkeypatch):
    def reach(*_, **__):
        raise Reached

    monkeypatch.setattr(triton.JITFunction, "run", reach)
    with standin.gpu(chip):
        for group, found in cases.GROUPS.items():
            launched = total = 0
            for case in found(group):
                total += 1
                try:
                    case.launch(2)
                except Reached:
                    launched += 1
                except ValueError as error:
                    assert str(error).startswith("config: expected")
            least = LAUNCHED.get(group, 0.7 if chip >= 90 else 0.25)
            assert launched >= least * total > 0, f"sm_{chip} {group}: {launched} of {total}"


def drawn(group: str, chip: int, whole: bool) -> list[cases.Case]:
    """STANDIN_SEED chooses the tenth; `make gates` prints it."""
    found = list(cases.GROUPS[group](group))
    draw = random.Random(f"{os.environ.get('STANDIN_SEED', '0')} {group} {chip}")
    return found if whole else draw.sample(found, -(-len(found) // 10))


@pytest.mark.gate
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("group", cases.GROUPS)
def test_every_launch(group, chip, whole):
    """Each compiles, fits the chip, satisfies the driver, and compiles nothing at a second size of the same boxes."""
    wrong = []
    with standin.gpu(chip) as asked:
        for case in drawn(group, chip, whole):
            before, sizes = asked.calls, (8, 24)
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
            if (found := asked.calls - before) > (expected := case.codes(sizes)):
                wrong.append(f"sm_{chip} {case.label}: expected {expected} codes for batches of {sizes}, got {found}")
    assert not wrong, "\n".join(wrong)


# The stand-in refuses what the driver does


def encode(box=(1, 8, 8, 64), sizes=(2, 16, 16, 64), strides=(16384, 1024, 64, 1), address=1 << 44, swizzle=3):
    """A descriptor of a bf16 tensor, as Triton asks for it."""
    utils = standin.driver.active.utils
    fill = getattr(utils, "fill_tma_descriptor", None) or utils.fill_tma_descriptor_tiled
    return fill(address, swizzle, 2, 9, list(box), list(sizes), list(strides), 0)


def test_a_descriptor_that_cuda_takes(asked):
    before = standin.library().counts["encoded"]
    encode()
    assert standin.library().counts["encoded"] == before + 1


@pytest.mark.parametrize(
    "change, told",
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
def test_a_descriptor_that_cuda_refuses(asked, change, told):
    with pytest.raises(RuntimeError, match=told):
        encode(**change)


@triton.jit
def copy_kernel(x_ptr, y_ptr, SIZE: triton.language.constexpr):
    offset = triton.language.arange(0, SIZE)
    triton.language.store(y_ptr + offset, triton.language.load(x_ptr + offset))


def test_memory_of_the_cpu_is_refused(asked):
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        copy_kernel[(1,)](torch.empty(64), torch.empty(64, device="cuda"), SIZE=64)


def test_code_for_another_chip_is_refused(asked):
    x = torch.empty(64, device="cuda")
    kernel = copy_kernel[(1,)](x, x, SIZE=64)
    standin.library().use(100)
    with pytest.raises(RuntimeError, match="expected code for sm_100, got sm_90"):
        standin.driver.active.utils.load_binary(kernel.name, kernel.kernel, 0, 0)
