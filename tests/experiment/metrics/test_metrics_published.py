"""The published run: its matrix gives its printed figures, and these fit DRIVE's field of view and nothing else."""

import json

import numpy as np
import pytest
from mlscorecheck.check.binary import check_1_testset_no_kfold
from mlscorecheck.check.bundles.retina import check_drive_vessel_aggregated_som_assumption
from mlscorecheck.experiments import get_experiment

from examples.vessels.metrics import published, scores

RUN = published.load()
VESSELS, OTHERS = 577_649, 3_960_494  # in the fields of view of DRIVE's test set, first annotator
PIXELS = 20 * 584 * 565
PRINTED = ("accuracy", "sensitivity", "specificity", "precision", "f1")
SHORT = dict(zip(PRINTED, ("acc", "sens", "spec", "ppv", "f1")))  # mlscorecheck's names
FIGURES = {SHORT[name]: RUN.figures[name] for name in PRINTED}


@pytest.mark.parametrize("name", PRINTED)
def test_the_published_matrix_gives_the_published_figures_to_the_last_digit(name):
    assert scores(RUN.counts)[name] == RUN.figures[name]
    assert repr(scores(RUN.counts)[name]) in published.PATH.read_text()


def test_the_true_jaccard_and_the_printed_one():
    """The printed Jaccard is the accuracy."""
    values, printed = scores(RUN.counts), json.loads(published.PATH.read_text())["published"][published.JACCARD]
    assert values["jaccard"] == 0.6932697980070517
    assert printed == values["accuracy"] != values["jaccard"]
    assert str(printed) in RUN.jaccard_note and "0.6932697980070517" in RUN.jaccard_note
    assert published.JACCARD not in RUN.figures


def test_the_matrix_has_the_counts_of_the_field_of_view():
    tn, fp, fn, tp = RUN.counts
    assert (tp + fn, tn + fp) == (VESSELS, OTHERS)


def test_the_figures_fit_one_matrix_of_the_field_of_view():
    result = check_1_testset_no_kfold(testset={"p": VESSELS, "n": OTHERS}, scores=FIGURES, eps=1e-8)
    assert not result["inconsistency"] and result["n_valid_tptn_pairs"] == 1


@pytest.mark.parametrize(
    "vessels, others",
    [(577_945, 6_021_255), (VESSELS, PIXELS - VESSELS), (556_532, 3_981_611)],
    ids=["all pixels", "all pixels, vessels of the field", "second annotator"],
)
def test_the_figures_do_not_fit_other_counts(vessels, others):
    assert check_1_testset_no_kfold(testset={"p": vessels, "n": others}, scores=FIGURES, eps=1e-8)["inconsistency"]


@pytest.mark.parametrize("region, inconsistent", [("fov", False), ("all", True)])
def test_mlscorecheck_knows_drive_and_agrees(region, inconsistent):
    result = check_drive_vessel_aggregated_som_assumption("test", region, 1, FIGURES, 1e-8)
    assert result["inconsistency"] is inconsistent


@pytest.mark.parametrize("region, pixels, line", [("fov", VESSELS + OTHERS, "0.8727"), ("all", PIXELS, "0.9124")])
def test_the_line_of_all_background_on_drive(region, pixels, line):
    """Over all pixels DRIVE has 296 vessel pixels more: some lie outside the field of view."""
    counts = get_experiment("retina.drive")[1, region]["test"]["images"]
    vessels = sum(image["p"] for image in counts)
    assert vessels == VESSELS + (296 if region == "all" else 0)
    values = scores(np.array([pixels - vessels, 0, vessels, 0]))
    assert f"{values['accuracy']:.4f}" == line and values["precision"] is None and values["sensitivity"] == 0


def test_the_areas_are_printed_but_need_the_probabilities():
    assert set(RUN.figures) == {*PRINTED, "roc_auc", "pr_auc_trapezoid"}
