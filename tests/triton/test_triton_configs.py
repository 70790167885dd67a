"""Config choice of the Triton kernels: tiles fit the tensor, and a call takes the first config that pruning leaves."""

import pytest

pytest.importorskip("triton")

from atrous.triton_kernels.conv import configs as conv_configs
from atrous.triton_kernels.conv.configs import Conv, ConvKey, conv_grid, conv_prune, conv_reasons
from atrous.triton_kernels.conv.problem import Problem
from atrous.triton_kernels.gpus import round_up
from atrous.triton_kernels.pointwise import configs
from atrous.triton_kernels.pointwise.configs import PointwiseKey

RESNET34 = [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]


@pytest.mark.parametrize("layout", configs.POINTWISE)
def test_each_list_is_sound(layout):
    listed = configs.POINTWISE[layout]
    assert len(set(listed)) == len(listed)
    for rows, cols, warps in listed:
        assert all(size & (size - 1) == 0 for size in (rows, cols, warps))
        assert rows * cols == 16 * 32 * warps  # elements per thread, as documented at POINTWISE


@pytest.mark.parametrize("channels, size", RESNET34)
def test_resnet34_wastes_few_lanes(channels, size):
    for key in (
        PointwiseKey("nhwc", 32 * size * size, channels),
        PointwiseKey("nchw", 32 * channels, size * size),
        PointwiseKey("nchw_flat", 32, channels * size * size),
    ):
        config = configs.pointwise_config(key)
        covered = round_up(key.rows, config.block_rows) * round_up(key.cols, config.block_cols)
        assert covered <= 1.31 * key.rows * key.cols  # 14 x 14 pixels in rows of 64


@pytest.mark.parametrize(
    "key, expected",
    [
        (PointwiseKey("nhwc", 10**6, 64), (32, 64, 4)),
        (PointwiseKey("nhwc", 10**6, 96), (128, 16, 4)),  # 64-wide tiles would cover a third more
        (PointwiseKey("nhwc", 10**6, 3), (128, 16, 4)),
        (PointwiseKey("nchw", 2048, 112 * 112), (2, 1024, 4)),
        (PointwiseKey("nchw", 2048, 56 * 56), (8, 256, 4)),
        (PointwiseKey("nchw_flat", 32, 512 * 49), (8, 256, 4)),
        (PointwiseKey("nchw_flat", 1, 512 * 49), (2, 1024, 4)),  # one image: few rows
    ],
)
def test_choices(key, expected):
    assert configs.pointwise_config(key) == expected
    assert configs.pointwise_config(key) == configs.pointwise_prune(key)[0]


@pytest.mark.parametrize("chip", [80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize("epilogue", ["fixed", "random", "statistics"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_every_convolution_has_a_config(chip, epilogue, layout):
    """For any channels, groups and precision pruning leaves a config; each fits, and none is listed twice."""
    for channels, out, groups in [
        (3, 64, 1),
        (64, 64, 1),
        (31, 33, 1),
        (64, 64, 4),
        (64, 128, 64),
        (1, 1, 1),
        (512, 8, 1),
    ]:
        for batch, size, element_size in ((1, 7, 2), (32, 56, 2), (2, 13, 4)):
            sizes = (channels, (size, size), out, (size, size), (3, 3), (1, 1), groups)
            for precision, int64_offsets in (("tf32", False), ("ieee", True)):
                key = ConvKey(chip, 132, element_size, precision, layout, batch, *sizes, True, int64_offsets, epilogue)
                pruned = conv_prune(key)
                assert pruned and len(set(pruned)) == len(pruned)
                assert not any(conv_reasons(key, config) for config in pruned)
                assert all(min(conv_grid(key, config)) > 0 for config in pruned)


def test_splits_fill_a_gpu_at_batch_1():
    """Layers 3 and 4 of ResNet34 have 4 to 8 tiles for 132 multiprocessors."""
    for channels, size in RESNET34[3:]:
        key = ConvKey(90, 132, 2, "tf32", "nhwc", 1, channels, (size,) * 2, channels, (size,) * 2, (3, 3), (1, 1), 1)
        config = conv_configs.conv_config(key)
        channel_tiles, pixel_tiles, steps = conv_grid(key, config)
        assert config.splits > 1 and 32 <= channel_tiles * pixel_tiles * config.splits <= 132
        assert steps >= config.splits * conv_configs.MIN_STEPS


@pytest.mark.parametrize("size, expected", [(56, (1, 8, 16)), (28, (8, 4, 4)), (14, (32, 2, 2)), (7, (128, 1, 1))])
def test_boxes_of_resnet34(size, expected):
    """At a batch that they divide, boxes waste no pixels (docs/performance.md); 56 is no multiple of 16."""
    key = ConvKey(90, 132, 2, "tf32", "nhwc", 128, 64, (size,) * 2, 64, (size,) * 2, (3, 3), (1, 1), 1)
    box = conv_configs.box(key, 128)
    covered = round_up(128, box[0]) * round_up(size, box[1]) * round_up(size, box[2])
    assert covered == 128 * size * size
    assert box == expected or size == 56


def test_a_measured_config_is_taken_where_it_fits():
    """A table entry is for a class of calls; a misaligned call, say, takes the predicted config instead."""
    key = ConvKey(90, 132, 2, "tf32", "nhwc", 8, 64, (28, 28), 64, (28, 28), (3, 3), (1, 1), 1)
    measured = Conv(64, 64, 128, 4, 4, descriptors=True)
    fitting, other = (Problem(None, k, None, None, None) for k in (key, key._replace(aligned=False)))
    assert fitting.config(None, measured) == measured
    assert other.config(None, measured) == conv_configs.conv_config(other.key)
    assert fitting.config(None) == conv_configs.conv_config(key)
    with pytest.raises(ValueError, match="config: expected aligned tensors"):
        other.config(measured)


@pytest.mark.parametrize("channels, size", [(128, 28), (256, 14)])
def test_l2_decides_between_tiles(channels, size):
    """At 32 bytes per clock from L2 a 128 x 128 step waits twice as long for its loads as for its MMAs, a 128 x 256
    step one and a half times. At batch 256 there are enough tiles for either."""
    key = ConvKey(90, 132, 2, "tf32", "nhwc", 256, channels, (size,) * 2, channels, (size,) * 2, (3, 3), (1, 1), 1)
    wide, square = (Conv(128, n, 128, 8, 3, descriptors=True) for n in (256, 128))
    assert conv_configs.conv_cycles(key, wide) < conv_configs.conv_cycles(key, square)
    assert conv_configs.conv_config(key)._replace(waves=0) == wide


def test_the_residency_is_that_of_the_chip():
    """Three blocks of 72 KiB fit 227 KiB, one fits 99 KiB."""
    key = ConvKey(90, 132, 2, "tf32", "nhwc", 256, 64, (56, 56), 64, (56, 56), (3, 3), (1, 1), 1)
    config = Conv(64, 128, 128, 4, 3, descriptors=True)
    assert conv_configs.conv_work(key, config).resident == 3
    assert conv_configs.conv_work(key._replace(chip=120), config).resident == 1
