"""The estimated field of view, on images whose field is known."""

import numpy as np
import pytest

from examples.vessels.data.field import estimate
from examples.vessels.data.synthetic import generate

Y, X = np.mgrid[:200, :260]


def overlap(one, two):
    return (one & two).sum() / (one | two).sum()


@pytest.fixture(scope="module")
def sample():
    return generate("train", 1)[0]


def test_a_fundus(sample):
    assert overlap(estimate(sample.image), sample.field) > 0.985


@pytest.mark.parametrize("background", [0, 25])
def test_a_disc_that_the_image_cuts(background):
    disc = np.hypot(Y - 100, X - 130) < 125  # cut above and below, as in STARE
    image = np.where(disc, 110, background)[..., None] + np.random.default_rng(0).integers(0, 12, (200, 260, 3))
    image[60:110, 100:150] = background  # a dark hole
    image[2:8, 2:20] = 200  # a label in a corner
    assert overlap(estimate(image.astype(np.uint8)), disc) > 0.98


@pytest.mark.parametrize("level", [0, 130, 255])
def test_an_image_without_a_surround_is_all_field(level):
    assert estimate(np.full((60, 70, 3), level, np.uint8)).all()
