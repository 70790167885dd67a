"""Bootstrap intervals over images of examples/vessels: repeated, exact where they say so, and of the right width."""

import numpy as np
import pytest
from sklearn import metrics

from examples.vessels.metrics import Prediction, ratios
from examples.vessels.metrics.curves import AREAS, areas
from examples.vessels.metrics.prediction import pool
from examples.vessels.metrics.resampling import Bootstrap, Histogram


def images(number=5, digits=2, empty=()):
    """Random predictions of differing quality; `digits` decides how many scores are equal, `empty` have no vessel."""
    result = []
    for i in range(number):
        draw = np.random.default_rng(i)
        truth = (draw.random((30, 30)) < 0.15) & (i not in empty)
        probability = np.clip((0.1 + 0.1 * i) * truth + 0.5 * draw.random((30, 30)), 0, 1).round(digits)
        result.append(Prediction(str(i), probability, truth, draw.random((30, 30)) < 0.9))
    return result


def drawn(predictions, multiplicity):
    """Truth and score of a resample, with each image as often as it was drawn."""
    return pool([one for one, times in zip(predictions, multiplicity.astype(int)) for _ in range(times)], "field")


def test_the_same_seed_gives_the_same_draws():
    first, second, other = (Bootstrap(7, 50, seed=seed).draws for seed in (3, 3, 4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert first.shape == (50, 7) and set(first.sum(1)) == {7}


def test_areas_of_resamples_are_exact_with_a_bin_for_each_score():
    predictions = images(digits=2)
    histogram, draws = Histogram(predictions, "field"), Bootstrap(5, 20).draws
    samples = histogram.samples(draws)
    assert histogram.exact and histogram.roc_error() == 0
    for i, multiplicity in enumerate(draws):
        exact, _ = areas(*drawn(predictions, multiplicity))
        assert {name: samples[name][i] for name in AREAS} == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("bins, tolerance", [(8, 0.1), (64, 0.01), (512, 0.001)])
def test_areas_in_coarse_bins_are_within_the_stated_error(bins, tolerance):
    predictions = images(digits=9)
    histogram = Histogram(predictions, "field", bins)
    samples = histogram.samples(np.ones((1, 5)))
    exact, _ = areas(*pool(predictions, "field"))
    assert not histogram.exact and histogram.counts.sum() == pool(predictions, "field")[0].size
    assert 0 < abs(samples["roc_auc"][0] - exact["roc_auc"]) <= histogram.roc_error() < tolerance
    assert all(abs(samples[name][0] - exact[name]) < 4 * tolerance for name in AREAS)


def test_chunks_of_resamples_join_in_order():
    histogram, draws = Histogram(images(), "all"), Bootstrap(5, 150).draws
    whole, alone = histogram.samples(draws), histogram.samples(draws[140:141])
    assert all(len(whole[name]) == 150 and whole[name][140] == alone[name][0] for name in AREAS)


def test_a_resample_without_vessels_is_undefined_and_left_out():
    predictions = images(2, empty=(0,))
    samples = Histogram(predictions, "field").samples(np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(samples["roc_auc"][0]) and np.isfinite(samples["roc_auc"][1])
    low, high = Bootstrap(2).interval(samples["roc_auc"])
    assert low == high == samples["roc_auc"][1]


def test_scores_of_resamples_are_those_of_the_drawn_pixels():
    predictions, draws = images(), Bootstrap(5, 10).draws
    matrices = [metrics.confusion_matrix(*(a[p.field] for a in (p.truth, p.probability >= 0.4))) for p in predictions]
    samples = ratios(draws @ np.array(matrices).reshape(5, 4))
    for i, multiplicity in enumerate(draws):
        truth, score = drawn(predictions, multiplicity)
        assert samples["f1"][i] == pytest.approx(metrics.f1_score(truth, score >= 0.4), abs=1e-14)


def test_the_interval_of_a_mean_covers_it_nearly_as_often_as_it_says():
    """400 sets of 20 images around a known mean: percentile intervals of 20 values cover a little less than 95 %."""
    draw, covered = np.random.default_rng(0), 0
    bootstrap = Bootstrap(20, 500, seed=1)
    for _ in range(400):
        figure = bootstrap.mean(draw.normal(0.8, 0.05, 20).tolist())
        assert figure["low"] < figure["value"] < figure["high"]
        covered += figure["low"] <= 0.8 <= figure["high"]
    assert 0.89 <= covered / 400 <= 0.98


def test_a_wider_confidence_gives_a_wider_interval():
    values = np.linspace(0, 1, 12).tolist()
    narrow, wide = (Bootstrap(12, 800, confidence).mean(values) for confidence in (0.5, 0.99))
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_the_mean_leaves_undefined_images_out():
    figure = Bootstrap(4, 200).mean([0.2, None, 0.6, None])
    assert (
        figure["value"] == pytest.approx(0.4)
        and figure["images"] == 2
        and 0.2 <= figure["low"] <= figure["high"] <= 0.6
    )
    assert Bootstrap(2, 9).mean([None, None]) == {"value": None, "low": None, "high": None, "images": 0}


def test_one_image_has_no_interval():
    assert Bootstrap(1, 10).mean([0.5]) == {"value": 0.5, "low": None, "high": None, "images": 1}


@pytest.mark.parametrize("arguments", [(3, 0), (3, 10, 1.0), (3, 10, 0.0)])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="expected resamples >= 1 and 0 < confidence < 1"):
        Bootstrap(*arguments)
    with pytest.raises(ValueError, match="expected bins >= 2, got 1"):
        Histogram(images(1), "all", 1)
