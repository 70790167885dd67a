"""The fused Triton convolution in every config, and the configs that it refuses."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import triton_cases as cases
from triton_cases import (
    DESCRIPTORS,
    DTYPES,
    INTERPRETING,
    LAYOUTS,
    POINTERS,
    on_device,
    on_gpu,
)

pytest.importorskip("triton")

from triton_conv import check, run  # noqa: E402

from atrous.triton_kernels.conv import configs  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


test_under_the_interpreter = cases.interpreted(__file__, least=150)


SPLIT = [tile._replace(splits=splits) for splits in configs.SPLITS if splits > 1 for tile in configs.CONV]
WHOLE = [tile._replace(waves=waves) for waves in configs.WAVES for tile in configs.CONV]


@on_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config, layout", cases.rotate_options(WHOLE, LAYOUTS), ids=cases.config_id)
def test_every_config(config, layout, dtype):
    """Two tiles along each axis, none of them full, and two steps per tap."""
    call = cases.convolution_for(config, dtype, layout, (2, 2), blocks=2)
    cases.check_if_it_fits(check, cases.with_epilogue(call, layout), layout, config)


@on_device
@pytest.mark.parametrize("config, dtype, layout", cases.rotate_options(SPLIT, DTYPES, LAYOUTS), ids=cases.config_id)
def test_every_split(config, dtype, layout):
    """The splits do not divide the steps; with few splits there are several tiles."""
    several_tiles = config.splits <= 4
    pixels = {} if several_tiles or not INTERPRETING else {"pixels": (1, 5, 7)}
    call = cases.convolution_for(
        config, dtype, layout, cases.SPLIT_KERNELS[config.splits], tiles=2 if several_tiles else 1, **pixels
    )
    if config.accumulators > (64 if config.descriptors else 32):  # registers also hold the partial sums
        with pytest.raises(ValueError, match="config: .*accumulators per thread"):
            run(call, layout, config)
    else:
        cases.check_if_it_fits(check, cases.with_epilogue(call, layout), layout, config)


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("waves", configs.WAVES)
@pytest.mark.parametrize("choice", [0, 1])
def test_every_config_of_depthwise_convolutions(choice, waves, layout):
    """With and without a multiplier; neither pixels nor channels fill a tile."""
    config = configs.DEPTHWISE[layout.lower()][choice]._replace(waves=waves)
    for dtype, multiplier in zip(DTYPES, (1, 3, 2)):
        channels = -(-(config.block_m + 3) // multiplier)
        size = (config.block_n // 35 + 1, channels, 5, 7)
        geometry = {"padding": (1, 1), "groups": channels}
        call = cases.convolution(size, channels * multiplier, (3, 3), dtype, layout, **geometry)
        check(cases.with_epilogue(call, layout), layout, config)


BULK = [config for config in WHOLE if config.descriptors]
if INTERPRETING:  # the larger persistent configs take long there
    BULK = [config for config in BULK if not config.waves or config.block_n == 64]


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("config", BULK, ids=cases.config_id)
@pytest.mark.parametrize(
    "stride, dilation, padding", [((2, 2), (1, 1), (1, 1)), ((2, 2), (2, 3), (3, 2)), ((1, 1), (3, 8), (4, 8))]
)
def test_descriptors_over_strides_and_dilations(config, stride, dilation, padding):
    """Boxes hang over every edge; with stride 2 taps' rows and columns have every parity, with two steps per tap."""
    for dtype in DTYPES if config.block_n == 64 or not INTERPRETING else DTYPES[:1]:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        call = cases.convolution_for(config, dtype, "NHWC", (3, 3), stride[0], tiles=1, pixels=(3, 6, 10), **geometry)
        cases.check_if_it_fits(check, cases.with_epilogue(call, "NHWC", "relu", "none"), "NHWC", config)


@on_device
@cases.on_sm_90
@pytest.mark.parametrize("block_n, box", [(n, box) for n, boxes in configs.BOXES.items() for box in boxes], ids=str)
def test_every_box(block_n, box):
    """Two boxes along images and rows, the second nearly empty, and one along columns that is not full."""
    config = next(config for config in configs.CONV if config.descriptors and config.block_n == block_n)
    pixels = (box[0] + 1, box[1] + 1, max(1, box[2] - 1))
    call = cases.convolution_for(config, torch.float16, "NHWC", (1, 3), tiles=1, pixels=pixels)
    with mock.patch.object(configs, "box", lambda key, block_n: box):
        cases.check_if_it_fits(check, cases.with_epilogue(call, "NHWC"), "NHWC", config)


@on_device
@pytest.mark.parametrize("precision", ["ieee"], indirect=True)
@pytest.mark.parametrize("config", configs.CONV, ids=cases.config_id)
def test_configs_of_ieee(precision, config):
    """Configs that need tensor cores or exceed the registers are refused; the setting has no effect on fp16."""
    call = cases.convolution_for(config, torch.float32, "NHWC", (1, 2))
    if not config.descriptors and config.accumulators <= 16:
        check(call, "NHWC", config)
    else:
        with pytest.raises(ValueError, match="config: .*(tensor cores|accumulators per thread)"):
            run(call, "NHWC", config)
    if cases.config_runs(config):
        cases.check_if_it_fits(check, cases.convolution_for(config, torch.float16, "NHWC", (1, 2)), "NHWC", config)


REFUSED = [  # config, layout, changes to a call of 64 channels, part of the message
    (POINTERS._replace(block_m=32), "NCHW", {}, "of the lists"),
    (POINTERS._replace(splits=3), "NCHW", {}, "of the lists"),
    (POINTERS._replace(waves=1), "NCHW", {}, "of the lists"),
    (configs.DEPTHWISE["nchw"][0], "NCHW", {}, "of the lists"),
    (POINTERS, "NCHW", {"groups": 64, "out_channels": 64}, "of the lists"),
    (POINTERS._replace(splits=4), "NCHW", {}, "steps per split"),  # 6 taps of 2 steps
    (POINTERS._replace(splits=2, waves=2), "NCHW", {}, "splits or waves"),
    (DESCRIPTORS, "NCHW", {}, "channels_last"),
    (DESCRIPTORS, "NHWC", {"groups": 2}, "groups=1"),
    (DESCRIPTORS, "NHWC", {"channels": 72}, "input channels divisible by 64"),
    (DESCRIPTORS, "NHWC", {"out_channels": 9}, "output channels divisible by 16 bytes"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 1)}, "stride 1"),
    (DESCRIPTORS, "NHWC", {"stride": (3, 3)}, "stride 1"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 2), "size": (8, 9)}, "even H and W"),
    (DESCRIPTORS, "NHWC", {"stride": (2, 2), "size": (7, 10)}, "even H and W"),
]


@on_device
@pytest.mark.parametrize("config, layout, changed, message", REFUSED, ids=cases.config_id)
def test_refused_configs(config, layout, changed, message):
    geometry = {name: changed[name] for name in ("stride", "groups") if name in changed}
    size = (2, changed.get("channels", 64), *changed.get("size", (8, 10)))
    call = cases.convolution(size, changed.get("out_channels", 24), (2, 3), torch.float16, layout, **geometry)
    with pytest.raises(ValueError, match=f"config: .*{message}"):
        run(call, layout, config)


@on_gpu
@pytest.mark.parametrize(
    "config, dtype, layout", cases.rotate_options(WHOLE + SPLIT, DTYPES, ["NHWC"]), ids=cases.config_id
)
def test_every_config_on_large_tensors(config, dtype, layout):
    """Pipelines fill and persistent programs take several tiles; a second call gives the same bits."""
    call = cases.with_epilogue(cases.convolution((8, 512, 28, 30), 264, (3, 3), dtype, layout, padding=(1, 1)), layout)
    cases.check_if_it_fits(check, call, layout, config)
    assert torch.equal(run(call, layout, config), run(call, layout, config))
