"""Widths of drawn vessels, thin and thick; and Frangi's filter on the same drawings."""

import numpy as np
import pytest
from skimage import draw
from sklearn import metrics

from examples.vessels.metrics import frangi, vessel_widths, width_classes


def line(width, degrees=0.0, side=120):
    """A straight vessel through the middle of the image, from border to border."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    across = y * np.cos(np.radians(degrees)) - x * np.sin(np.radians(degrees))
    return (across > -width / 2 - 1e-9) & (across <= width / 2 - 1e-9)


@pytest.mark.parametrize("width", range(1, 11))
@pytest.mark.parametrize("turn", [False, True])
def test_a_line_along_an_axis_has_its_width(width, turn):
    mask = np.zeros((60, 80), bool)
    mask[20 : 20 + width] = True
    widths = vessel_widths(mask)
    if turn:
        widths, mask = vessel_widths(mask.T).T, mask
    assert not widths[~mask].any()
    middle = widths[20 : 20 + width, 15:-15]  # away from the ends
    assert (middle == width).all()
    assert width_classes(mask)["thin"][:, 15:-15].any() == (width <= 3)


@pytest.mark.parametrize("degrees", [15, 30, 45, 60, 80])
@pytest.mark.parametrize("width", [2, 3, 5, 8])
def test_a_slanted_line_has_its_width_within_a_pixel(width, degrees):
    mask = line(width, degrees)
    middle = vessel_widths(mask)[20:-20, 20:-20]
    assert abs(np.median(middle[middle > 0]) - width) <= 1
    classes = width_classes(mask)
    side = "thin" if width <= 3 else "thick"
    if width != 3:  # 3 is the limit, and a slanted line of 3 has parts of 4
        assert classes[side][20:-20, 20:-20].sum() >= 0.9 * mask[20:-20, 20:-20].sum()


def test_a_branch_is_thin_where_it_leaves_a_thick_vessel():
    mask = np.zeros((100, 100), bool)
    mask[40:49] = True
    mask[49:, 50:52] = True
    classes = width_classes(mask)
    assert (
        not (classes["thin"] & classes["thick"]).any()
        and (classes["thin"] | classes["thick"]).tolist() == mask.tolist()
    )
    assert classes["thin"][58:96, 50:52].all() and classes["thick"][40:49, 20:45].all()


def test_a_vessel_keeps_its_width_at_the_border_of_the_image():
    assert vessel_widths(line(6))[:, 0].max() == pytest.approx(6, abs=1)


def test_a_short_end_is_all_that_counts_as_thinner():
    mask = np.zeros((60, 120), bool)
    mask[26:34, 20:100] = True
    classes = width_classes(mask)
    assert classes["thick"][26:34, 26:94].all() and classes["thin"].sum() < 0.1 * mask.sum()


def test_masks_without_vessels_and_without_background():
    empty, full = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    assert not vessel_widths(empty).any() and not any(mask.any() for mask in width_classes(empty).values())
    assert width_classes(full)["thick"].all()


@pytest.fixture(scope="module")
def fundus():
    """(image, truth, field): dark lines of several widths on a shaded disc."""
    y, x = np.mgrid[:160, :160]
    field = (y - 80) ** 2 + (x - 80) ** 2 < 75**2
    truth = np.zeros((160, 160), bool)
    for column, width in ((45, 2), (80, 4), (110, 6)):
        truth[:, column : column + width] = True
    rows, columns = draw.line(20, 20, 140, 140)
    truth[rows, columns] = True
    truth &= field
    noise = np.random.default_rng(0).normal(0, 0.01, truth.shape)
    green = np.where(field, 0.5 + 0.001 * y - 0.15 * truth + noise, 0)
    return (np.stack([green, green, green], -1).clip(0, 1) * 255).astype(np.uint8), truth, field


def test_frangi_finds_dark_lines(fundus):
    image, truth, field = fundus
    score = frangi(image, field)
    assert score.shape == truth.shape and score.dtype == float and 0 <= score.min() and score.max() <= 1
    assert not score[~field].any()
    assert metrics.roc_auc_score(truth[field], score[field]) > 0.9
    assert np.array_equal(score, frangi(image / 255, field))


def test_frangi_finds_vessels_beside_the_rim_of_the_field(fundus):
    """The rim is a strong edge: without the field of view it hides them."""
    image, truth, field = fundus
    y, x = np.mgrid[:160, :160]
    ring = field & ((y - 80) ** 2 + (x - 80) ** 2 > 70**2)
    without, within = (metrics.roc_auc_score(truth[ring], frangi(image, f)[ring]) for f in (None, field))
    assert within > 0.95 > 0.85 > without


@pytest.mark.parametrize(
    "image, field, message",
    [
        (np.zeros((4, 4)), None, r"expected image \(H, W, 3\) of uint8 or floating point, got \(4, 4\)"),
        (np.zeros((4, 4, 3), int), None, "expected image .* of int64"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4), bool), "expected field of shape .* not empty"),
        (np.zeros((4, 4, 3)), np.ones((4, 5), bool), r"expected field of shape \(4, 4\).* got \(4, 5\)"),
    ],
)
def test_frangi_refuses_other_arrays(image, field, message):
    with pytest.raises(ValueError, match=message):
        frangi(image, field)
