"""The statistics of the comparison beside scipy's and values computed by hand, and the sentences that they allow."""

import numpy as np
import pytest
from scipy import stats

from examples.vessels.comparison import statistics
from examples.vessels.comparison.arms import ARMS, REFERENCE, Arm

IMAGES = 12
DRAW = np.random.default_rng(3)
BASE = DRAW.uniform(0.6, 0.8, IMAGES)


def arm(offset, seeds=2, spread=0.01):
    """The same values for each metric: the reference's plus an offset."""
    values = [(BASE + offset + DRAW.normal(0, spread, IMAGES)).tolist() for _ in range(seeds)]
    return {metric: values for metric in statistics.METRICS}


def test_holm_is_that_computed_by_hand():
    # Rising 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1; the third, 0.06, is no smaller than the one before it.
    assert statistics.holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert statistics.holm([0.5, 0.04]) == pytest.approx([0.5, 0.08])
    assert statistics.holm([0.9, 0.6, None]) == [1.0, 1.0, None]
    assert statistics.holm([0.02, 0.01, 0.015]) == pytest.approx([0.03, 0.03, 0.03])
    assert statistics.holm([]) == []


def test_wilcoxon_is_scipys_over_images_averaged_over_seeds():
    arms = {"prelu": arm(0), "lower": arm(-0.05), "other": arm(0.001)}
    results = statistics.compare(arms, "prelu", resamples=500)
    for name in ("lower", "other"):
        ours, reference = (np.mean(arms[key]["f1"], axis=0) for key in (name, "prelu"))
        line = results[name]["f1"]
        assert line["p"] == pytest.approx(stats.wilcoxon(ours, reference).pvalue) and line["images"] == IMAGES
        assert line["median"] == pytest.approx(np.median(ours - reference))
        assert line["low"] <= line["median"] <= line["high"] and line["mean"] == pytest.approx(ours.mean())
    assert results["lower"]["f1"]["shown"] and results["lower"]["f1"]["high"] < 0
    assert not results["other"]["f1"]["shown"]
    adjusted = statistics.holm([results[name]["f1"]["p"] for name in ("lower", "other")])
    assert [results[name]["f1"]["p_holm"] for name in ("lower", "other")] == adjusted
    assert set(results["prelu"]["f1"]) == {"mean"}


def test_both_conditions_are_needed():
    line = {"p_holm": 0.01, "low": 0.1, "high": 0.2}
    assert statistics.shown(line)
    assert not statistics.shown(line | {"p_holm": 0.05}) and not statistics.shown(line | {"low": -0.1})
    assert not statistics.shown(line | {"p_holm": None}) and not statistics.shown(line | {"low": None})


@pytest.mark.filterwarnings("error")
def test_undefined_values_are_left_out_and_equal_ones_have_p_1():
    assert statistics.wilcoxon(np.zeros(8)) == 1.0 and statistics.wilcoxon(np.array([])) is None
    lacking = {metric: [[None, 0.5, 0.6]] for metric in statistics.METRICS}
    whole = {metric: [[0.4, 0.5, 0.6]] for metric in statistics.METRICS}
    line = statistics.compare({"prelu": whole, "a": lacking}, "prelu", resamples=50)["a"]["f1"]
    assert line["images"] == 2 and line["mean"] == pytest.approx(0.55) and line["p"] == 1.0 and not line["shown"]
    nothing = {metric: [[None] * 3] for metric in statistics.METRICS}
    line = statistics.compare({"prelu": whole, "a": nothing}, "prelu", resamples=50)["a"]["f1"]
    assert (line["mean"], line["median"], line["p_holm"], line["shown"]) == (None, None, None, False)
    assert statistics.effect(np.array([0.25]), 10) == {"median": 0.25, "low": None, "high": None}


def test_the_arms_differ_from_the_reference_in_one_factor():
    assert len({arm.folder for arm in ARMS}) == len(ARMS) and ARMS[0] is REFERENCE
    factors = [set(arm.changes) - {"slope"} for arm in ARMS[1:]]
    assert all(len(factor) == 1 for factor in factors) and set().union(*factors) == {"act", "rates", "dropout"}
    assert Arm("leaky_relu 1/5.5").folder == "leaky_relu_1_5.5"
