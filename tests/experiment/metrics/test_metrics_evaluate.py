"""The result of `evaluate` and its table: pooled and mean, both regions, annotators, undefined figures and notes."""

import itertools
import json

import numpy as np
import pytest
from sklearn import metrics

from examples.vessels.metrics import Prediction, best_threshold, evaluate, render, width_classes
from examples.vessels.metrics.curves import AREAS
from examples.vessels.metrics.matrix import SCORES


def image(name, seed, prevalence=0.15, second=True):
    draw = np.random.default_rng(seed)
    truth = np.zeros((48, 48), bool)
    truth[10:12], truth[30:38] = True, True  # a thin and a thick vessel
    truth &= draw.random(48) < prevalence * 5
    field = (np.mgrid[:48, :48][0] - 24) ** 2 + (np.mgrid[:48, :48][1] - 24) ** 2 < 23**2
    probability = np.clip(0.35 * truth + draw.random((48, 48)) * 0.65, 0, 1)
    return Prediction(name, probability, truth, field, truth ^ (draw.random((48, 48)) < 0.03) if second else None)


IMAGES = [image("a", 0), image("b", 1, 0.05), image("c", 2), image("d", 3, second=False)]
VALIDATION = [image("v", 9), image("w", 10)]


@pytest.fixture(scope="module")
def result():
    return evaluate(IMAGES, VALIDATION, resamples=200)


def masks(one, region):
    return one.field if region == "field" else np.ones_like(one.field)


@pytest.mark.parametrize("region", ["field", "all"])
def test_figures_are_those_of_the_pixels(result, region):
    truth = np.concatenate([i.truth[masks(i, region)] for i in IMAGES])
    score = np.concatenate([i.probability[masks(i, region)] for i in IMAGES])
    figures = result["regions"][region]
    assert (figures["pixels"], figures["vessels"]) == (truth.size, truth.sum())
    assert figures["prevalence"] == pytest.approx(truth.mean())
    assert figures["areas"]["pooled"]["roc_auc"]["value"] == pytest.approx(metrics.roc_auc_score(truth, score))
    singles = [
        metrics.average_precision_score(i.truth[masks(i, region)], i.probability[masks(i, region)]) for i in IMAGES
    ]
    assert figures["areas"]["per_image"]["average_precision"] == pytest.approx(singles)
    assert figures["areas"]["mean"]["average_precision"]["value"] == pytest.approx(np.mean(singles))
    for name, threshold in (("half", 0.5), ("validation", best_threshold(VALIDATION))):
        assert result["thresholds"][name] == threshold
        at = figures[name]
        assert at["confusion_matrix"] == metrics.confusion_matrix(truth, score >= threshold).tolist()
        assert at["pooled"]["f1"]["value"] == pytest.approx(metrics.f1_score(truth, score >= threshold))


def test_intervals_enclose_their_figures_and_come_again(result):
    again, other = (evaluate(IMAGES, VALIDATION, resamples=200, seed=seed) for seed in (0, 1))
    assert json.dumps(again) == json.dumps(result) != json.dumps(other)
    for group in ("areas", "half", "validation"):
        for kind in ("pooled", "mean"):
            for name, figure in result["regions"]["field"][group][kind].items():
                assert figure["low"] <= figure["value"] <= figure["high"], (group, kind, name)


def test_background_and_second_annotator(result):
    for region in ("field", "all"):
        figures = result["regions"][region]
        background = figures["background"]["pooled"]
        assert background["accuracy"]["value"] == pytest.approx(1 - figures["prevalence"])
        assert background["sensitivity"]["value"] == 0 and background["precision"]["value"] is None
        truth, second = (
            np.concatenate([getattr(i, kind)[masks(i, region)] for i in IMAGES[:3]]) for kind in ("truth", "second")
        )
        assert figures["second"]["pooled"]["f1"]["value"] == pytest.approx(metrics.f1_score(truth, second))
        assert figures["second"]["mean"]["f1"]["images"] == 3 and figures["second"]["per_image"]["f1"][3] is None
    assert evaluate([IMAGES[3]], resamples=5)["regions"]["field"]["second"] is None


def test_thin_and_thick_vessels_apart():
    truth = np.zeros((60, 60), bool)
    truth[10:12], truth[30:40] = True, True
    probability = np.zeros((60, 60))
    probability[30:40] = 0.9  # the thick vessel alone
    probability[10:12, :15] = 0.9  # and a quarter of the thin one
    field = np.ones_like(truth)
    half = evaluate([Prediction("a", probability, truth, field)], resamples=5)["regions"]["all"]["half"]
    thin, thick = half["thin"], half["thick"]
    assert thin["pixels"] + thick["pixels"] == truth.sum() and thin["pixels"] >= 120
    assert thick["pooled"]["sensitivity"]["value"] == 1
    assert 0.25 <= thin["pooled"]["sensitivity"]["value"] < 0.5  # with the corners of the thick vessel's ends


def test_thin_and_thick_vessels_of_a_region(result):
    """Sensitivities are over the vessel pixels of the region that have the width."""
    masks_of = {image.name: width_classes(image.truth) for image in IMAGES}
    for region, name in itertools.product(("field", "all"), ("thin", "thick")):
        parts = [masks_of[image.name][name] & masks(image, region) for image in IMAGES]
        marked = [int((image.probability >= 0.5)[part].sum()) for image, part in zip(IMAGES, parts)]
        figures, sizes = result["regions"][region]["half"][name], [int(part.sum()) for part in parts]
        assert figures["pixels"] == sum(sizes) and sum(size > 0 for size in sizes) >= 3
        singles = [m / size if size else None for m, size in zip(marked, sizes)]
        assert figures["per_image"]["sensitivity"] == pytest.approx(singles)
        assert figures["pooled"]["sensitivity"]["value"] == pytest.approx(sum(marked) / sum(sizes))
    assert result["regions"]["field"]["half"]["thick"]["pixels"] < result["regions"]["all"]["half"]["thick"]["pixels"]


def test_pooled_figures_and_means_over_images_differ():
    """One image has 90 vessel pixels, all right, the other 10, all missed: 0.9 of the pixels, 0.5 on average."""
    field = np.ones((10, 20), bool)
    many, one = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    many[:9, :10], one[0, :10] = True, True
    images = [Prediction("many", many * 1.0, many, field), Prediction("one", np.zeros((10, 20)), one, field)]
    half = evaluate(images, resamples=50)["regions"]["field"]["half"]
    assert half["pooled"]["sensitivity"]["value"] == 0.9 and half["mean"]["sensitivity"]["value"] == 0.5
    assert half["mean"]["precision"] == {"value": 1.0, "low": 1.0, "high": 1.0, "images": 1}  # 0/0 in the other


@pytest.mark.filterwarnings("error")
def test_an_image_without_vessels_is_left_out_of_means_and_named():
    blank = Prediction("blank", np.full((48, 48), 0.1), np.zeros((48, 48), bool), np.ones((48, 48), bool))
    result = evaluate([*IMAGES[:2], blank], resamples=20)
    figures = result["regions"]["field"]
    assert figures["areas"]["per_image"]["roc_auc"][2] is None and figures["areas"]["mean"]["roc_auc"]["images"] == 2
    assert (
        figures["half"]["mean"]["sensitivity"]["images"] == 2 and figures["half"]["mean"]["specificity"]["images"] == 3
    )
    about = [note for note in result["notes"] if "in blank and left out of the mean" in note]
    assert any("areas under the curves" in note and "roc_auc" in note for note in about)
    assert any("threshold 0.5: " in note and "sensitivity" in note for note in about)


@pytest.mark.filterwarnings("error")
def test_no_vessel_at_all_and_nothing_but_vessels():
    ones = np.ones((9, 9), bool)
    for truth in (~ones, ones):
        result = evaluate([Prediction("a", np.full((9, 9), 0.2), truth, ones)], resamples=5)
        assert result["regions"]["all"]["areas"]["pooled"]["roc_auc"] == {"value": None, "low": None, "high": None}
        assert result["regions"]["all"]["areas"]["curves"] is None
        assert any("undefined (0/0) for all images together: roc_auc" in note for note in result["notes"])
        json.dumps(result, allow_nan=False)
        assert "undefined" in render(result)


def test_notes_on_missing_annotators_and_intervals(result):
    assert "no second annotator for d; the second annotator's figures are those of the other images" in result["notes"]
    alone = evaluate([IMAGES[3]], resamples=5)
    assert any(note.startswith("one image has no interval") for note in alone["notes"])
    assert any(note.startswith("no second annotator for any image") for note in alone["notes"])


def test_the_result_is_plain_json_with_the_documented_keys(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    documented = evaluate.__doc__
    region = result["regions"]["field"]
    for key in [*result, *result["bootstrap"], *region, *region["areas"], *region["areas"]["binning"], *region["half"]]:
        assert f'"{key}"' in documented, key
    for at in ("half", "validation", "background", "second"):
        assert region[at]["pooled"].keys() == region[at]["per_image"].keys() == SCORES.keys()
    assert region["areas"]["pooled"].keys() == set(AREAS)


def test_the_table_fits_100_columns_and_has_every_figure(result):
    text = render(result)
    assert max(map(len, text.splitlines())) <= 100
    for region in result["regions"].values():
        for group in ("areas", "half", "validation"):
            for name, figure in region[group]["pooled"].items():
                assert name in text and f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]" in text
    assert "in the field of view" in text and "over all pixels" in text and "thin: sensitivity" in text
    assert all(note.split(":")[0] in text for note in result["notes"])
    assert "validation" not in render(evaluate(IMAGES[:2], resamples=5))


def test_repeated_names_and_no_image_are_refused():
    with pytest.raises(ValueError, match="expected predictions with at least one image, got none"):
        evaluate([])
    with pytest.raises(ValueError, match="expected images of different names in predictions, got a more than once"):
        evaluate([IMAGES[0], IMAGES[0]])
