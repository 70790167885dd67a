"""Scores, areas and thresholds of examples/vessels beside scikit-learn's on the pixels themselves."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from examples.vessels.metrics import Prediction, areas, best_threshold, ratios, scores
from examples.vessels.metrics.curves import thin_out
from examples.vessels.metrics.matrix import SCORES, count, count_at
from examples.vessels.metrics.prediction import pool

ON_PIXELS = {
    "accuracy": metrics.accuracy_score,
    "sensitivity": metrics.recall_score,
    "specificity": lambda y, p: metrics.confusion_matrix(y, p, normalize="true")[0, 0],
    "precision": metrics.precision_score,
    "f1": metrics.f1_score,
    "jaccard": metrics.jaccard_score,
    "mean_iou": lambda y, p: (metrics.jaccard_score(y, p) + metrics.jaccard_score(~y, ~p)) / 2,
    "mcc": metrics.matthews_corrcoef,
    "kappa": metrics.cohen_kappa_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
}


def image(name="a", seed=0, side=40, prevalence=0.2):
    """A random prediction with ties, better than chance, and a field of view that leaves some pixels out."""
    draw = np.random.default_rng(seed)
    truth, field = draw.random((side, side)) < prevalence, draw.random((side, side)) < 0.8
    probability = np.clip(0.3 * truth + draw.random((side, side)) * 0.7, 0, 1).round(3)
    return Prediction(name, probability, truth, field, truth ^ (draw.random((side, side)) < 0.05))


@pytest.mark.parametrize("region", ["field", "all"])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_scores_are_those_of_scikit_learn_on_the_pixels(region, threshold):
    one = image()
    inside = one.field if region == "field" else np.ones_like(one.field)
    truth, predicted = one.truth[inside], one.probability[inside] >= threshold
    counts = count_at(one, threshold, region)
    assert counts.reshape(2, 2).tolist() == metrics.confusion_matrix(truth, predicted).tolist()
    values, formulas = scores(counts), ratios(counts)
    assert values.keys() == formulas.keys() == SCORES.keys() == ON_PIXELS.keys()
    for name, score in ON_PIXELS.items():
        assert values[name] == pytest.approx(score(truth, predicted), abs=1e-14), name
        assert values[name] == pytest.approx(float(formulas[name]), abs=1e-14), name


@pytest.mark.filterwarnings("error")
def test_formulas_and_scikit_learn_agree_and_are_undefined_together():
    """Every matrix with counts 0, 1 and 5, and one whose products exceed int64."""
    grid = np.stack(np.meshgrid(*[[0, 1, 5]] * 4), axis=-1).reshape(-1, 4)
    for counts in [*grid, np.array([4e12, 3e9, 2e9, 7e11])]:
        values, formulas = scores(counts), ratios(counts)
        for name, value in values.items():
            expected = np.nan if value is None else value
            assert formulas[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), (name, counts)
    batch = ratios(grid)
    assert all(np.array_equal(batch[n], [ratios(c)[n] for c in grid], equal_nan=True) for n in batch)


@pytest.mark.parametrize(
    "counts, undefined",
    [
        ((7, 0, 3, 0), {"precision", "mcc"}),  # nothing marked: the all-background line
        ((7, 3, 0, 0), {"sensitivity", "mcc", "balanced_accuracy"}),  # no vessel in the truth
        ((10, 0, 0, 0), set(SCORES) - {"accuracy", "specificity"}),  # neither
        ((0, 0, 0, 10), {"specificity", "mean_iou", "mcc", "kappa", "balanced_accuracy"}),  # nothing but vessels
        ((0, 0, 0, 0), set(SCORES)),  # no pixel
        ((5, 0, 0, 5), set()),
        ((0, 5, 5, 0), set()),
    ],
)
def test_a_ratio_without_denominator_is_none_and_not_0(counts, undefined):
    assert {name for name, value in scores(counts).items() if value is None} == undefined


def test_perfect_and_worst_matrices():
    perfect, worst = scores((90, 0, 0, 10)), scores((0, 90, 10, 0))
    assert set(perfect.values()) == {1.0}
    assert worst["mcc"] == pytest.approx(-1) and worst["kappa"] < 0
    assert all(value == 0 for name, value in worst.items() if name not in ("mcc", "kappa"))


@pytest.mark.parametrize("counts", [(1, 2, 3), (1, 2, 3, -1), (1, 2, 3, np.nan), np.ones((2, 2))])
def test_wrong_counts_are_refused(counts):
    with pytest.raises(ValueError, match=r"expected counts \(tn, fp, fn, tp\)"):
        scores(counts)


def test_areas_are_those_of_scikit_learn():
    truth, score = pool([image("a", 0), image("b", 1)], "field")
    values, curves = areas(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(truth, score)
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-14)
    assert values["average_precision"] == pytest.approx(metrics.average_precision_score(truth, score), abs=1e-14)
    assert values["pr_auc_trapezoid"] == pytest.approx(metrics.auc(recall, precision), abs=1e-14)
    drawn = metrics.auc(curves["roc"]["false_positive_rate"], curves["roc"]["true_positive_rate"])
    assert drawn == pytest.approx(values["roc_auc"], abs=1e-3)


def test_areas_of_perfect_worst_and_constant_scores():
    truth = np.arange(100) < 20
    perfect, worst, constant = (areas(truth, s)[0] for s in (truth * 1.0, 1.0 - truth, np.full(100, 0.3)))
    assert perfect == dict.fromkeys(perfect, pytest.approx(1))
    assert worst["roc_auc"] == 0
    assert (constant["roc_auc"], constant["average_precision"]) == (0.5, pytest.approx(0.2))
    assert constant["pr_auc_trapezoid"] == pytest.approx(0.6)  # half of 1 + prevalence: a straight line from (0, 1)


@pytest.mark.parametrize("truth", [np.zeros(9, bool), np.ones(9, bool)])
def test_areas_of_one_class_are_undefined(truth):
    values, curves = areas(truth, np.linspace(0, 1, 9))
    assert set(values.values()) == {None} and curves is None


def test_a_thinned_curve_keeps_both_ends_and_its_order():
    x = np.linspace(0, 1, 100_000)
    curve = thin_out(50, x=x, y=x**0.5)
    assert 40 <= len(curve["x"]) <= 50 and curve["x"][0] == 0 and curve["x"][-1] == 1
    assert curve["x"] == sorted(curve["x"]) and max(np.diff(curve["y"])) < 0.1


def test_the_threshold_maximises_f1_over_the_field_of_all_images():
    images = [image("a", 0), image("b", 1, prevalence=0.05)]
    truth, score = pool(images, "field")
    f1 = {t: metrics.f1_score(truth, score >= t) for t in np.unique(score)}
    best = best_threshold(images)
    assert f1[best] == pytest.approx(max(f1.values())) and best != 0.5
    assert f1[best] > metrics.f1_score(truth, score >= 0.5)


def test_pixels_outside_the_field_do_not_change_the_threshold():
    images = [image("a", 0), image("b", 1)]
    best = best_threshold(images)
    for outside in (np.zeros_like, np.ones_like):
        changed = [
            replace(one, probability=np.where(one.field, one.probability, outside(one.probability))) for one in images
        ]
        assert best_threshold(changed) == best


def test_a_threshold_without_vessels_is_refused():
    blank = Prediction("x", np.zeros((3, 3)), np.zeros((3, 3), bool), np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="expected vessel pixels .* got none"):
        best_threshold([blank])
    with pytest.raises(ValueError, match="expected threshold_from with at least one image"):
        best_threshold([])


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"probability": np.ones((3, 4), int)}, TypeError, "image 07: expected probability as a floating point.*int64"),
        ({"probability": [[0.1]]}, TypeError, "image 07: expected probability .* got list"),
        ({"probability": np.full((3, 4), 1.5)}, ValueError, "image 07: expected probability in .* to 1.5"),
        ({"probability": np.full((3, 4), np.nan)}, ValueError, "image 07: expected probability in .* nan"),
        ({"probability": np.ones(3)}, ValueError, r"image 07: expected probability of shape \(H, W\), got \(3,\)"),
        ({"truth": np.ones((3, 4), np.uint8)}, TypeError, "image 07: expected truth .* got uint8"),
        ({"truth": np.ones((4, 3), bool)}, ValueError, r"image 07: expected truth of probability's .* got \(4, 3\)"),
        ({"field": np.zeros((3, 4), bool)}, ValueError, "image 07: expected a field of view .* got none"),
        ({"second": np.ones((3, 5), bool)}, ValueError, r"image 07: expected second .* got \(3, 5\)"),
        ({"second": np.ones((3, 4))}, TypeError, "image 07: expected second .* got float64"),
    ],
)
def test_a_malformed_prediction_says_which_image_and_why(changes, error, message):
    arguments = {"probability": np.full((3, 4), 0.5), "truth": np.ones((3, 4), bool), "field": np.ones((3, 4), bool)}
    with pytest.raises(error, match=message):
        Prediction("07", **{**arguments, **changes})


def test_an_unknown_region_is_refused():
    with pytest.raises(ValueError, match="expected region as one of field, all, got 'fov'"):
        image().inside("fov")


def test_counts_in_their_order():
    truth, predicted = np.array([[0, 0, 0, 1, 1, 1]]) > 0, np.array([[0, 0, 1, 0, 0, 1]]) > 0
    assert count(truth, predicted, np.ones_like(truth)).tolist() == [2, 1, 2, 1]
