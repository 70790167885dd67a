"""The config that a call takes: tiles fit the tensor, and the choice is the first that pruning leaves."""

import pytest

from atrous.triton_kernels import pointwise_configs as configs
from atrous.triton_kernels.configs import round_up
from atrous.triton_kernels.pointwise_configs import PointwiseKey

RESNET34 = [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]


@pytest.mark.parametrize("layout", configs.POINTWISE)
def test_each_list_is_sound(layout):
    listed = configs.POINTWISE[layout]
    assert len(set(listed)) == len(listed)
    for rows, cols, warps in listed:
        assert all(size & (size - 1) == 0 for size in (rows, cols, warps))
        assert rows * cols == 16 * 32 * warps  # elements a thread: what the lists' comment says


@pytest.mark.parametrize("channels, size", RESNET34)
def test_resnet34_wastes_few_lanes(channels, size):
    for key in (
        PointwiseKey("last", 32 * size * size, channels),
        PointwiseKey("planes", 32 * channels, size * size),
        PointwiseKey("flat", 32, channels * size * size),
    ):
        config = configs.pointwise_config(key)
        covered = round_up(key.rows, config.block_rows) * round_up(key.cols, config.block_cols)
        assert covered <= 1.31 * key.rows * key.cols  # 14 x 14 pixels in rows of 64


@pytest.mark.parametrize(
    "key, expected",
    [
        (PointwiseKey("last", 10**6, 64), (32, 64, 4)),
        (PointwiseKey("last", 10**6, 96), (128, 16, 4)),  # 64-wide tiles would cover a third more
        (PointwiseKey("last", 10**6, 3), (128, 16, 4)),
        (PointwiseKey("planes", 2048, 112 * 112), (2, 1024, 4)),
        (PointwiseKey("planes", 2048, 56 * 56), (8, 256, 4)),
        (PointwiseKey("flat", 32, 512 * 49), (8, 256, 4)),
        (PointwiseKey("flat", 1, 512 * 49), (2, 1024, 4)),  # one image: few rows
    ],
)
def test_choices(key, expected):
    assert configs.pointwise_config(key) == expected
    assert configs.pointwise_config(key) == configs.pointwise_prune(key)[0]
