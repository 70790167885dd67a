"""The published preparation of images, against its formulas written out."""

import numpy as np
import pytest
from skimage import exposure

from examples.vessels.data import Preparation, Sample


def sample(seed=0, shape=(64, 72)):
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] * np.array([1.2, 0.8, 0.5])
    image = np.clip(smooth + rng.normal(0, 8, (*shape, 3)), 0, 255).astype(np.uint8)
    return Sample("a", image, None, None, np.ones(shape, bool))


def test_statistics_are_those_of_all_training_pixels():
    samples = [sample(0), sample(1, (32, 40))]
    grey = np.concatenate([(s.image @ np.array([0.299, 0.587, 0.114])).ravel() for s in samples])
    fitted = Preparation.fit(samples)
    assert fitted.mean == pytest.approx(grey.mean(), rel=1e-5)
    assert fitted.deviation == pytest.approx(grey.std(), rel=1e-4)
    with pytest.raises(ValueError, match="no images"):
        Preparation.fit([])


def test_values_are_the_published_ones():
    one = sample()
    values = Preparation(100.0, 40.0)(one.image)
    grey = one.image @ np.array([0.299, 0.587, 0.114])
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    equal = exposure.equalize_adapthist(grey, kernel_size=(8, 9), clip_limit=2 / 256)
    assert values.dtype == np.float32 and values.shape == (64, 72) and values.min() >= 0 and values.max() <= 1
    np.testing.assert_allclose(values, equal ** (1 / 1.2), atol=2e-3)


def test_an_even_image_stays_finite():
    values = Preparation(0.0, 0.0)(np.full((64, 64, 3), 90, np.uint8))
    assert np.isfinite(values).all() and 0 <= values.min() and values.max() <= 1
