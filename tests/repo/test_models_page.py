"""docs/models.md: it is the page of the newest results, whose models are those of bench/public_models/zoo.py."""

import json

import pytest

from bench.public_models import errors, measure, page, verdict, zoo

ROW = {
    "library": "timm",
    "counted": {"convolutions": 9, "activated": 4, "seconds": 1.0},
    "eval": {"sites": 7, "activated": 3, "output": 1e-15, "missed": {"stem.conv": "conv+bn: used 2 times"},
             "breaks": {"a list": 2}, "reasons": {"used N times": 2}, "listed": 9, "seconds": 2.0},
    "frozen": {"sites": 7, "activated": 3, "output": 0.0, "missed": {}},
    "training": {"sites": 7, "activated": 4, "output": 2e-14, "gradient": 3e-13, "buffer": 4e-15, "missed": {},
                 "plain": {"hooks": 1}},
    "time": {"plain": 2.0, "fused": 1.5, "again": 2.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def newest():
    return page.newest(page.RESULTS)


def test_the_page_is_that_of_the_newest_results(newest):
    assert page.PAGE.read_text() == page.text(json.loads(newest.read_text()), newest.name), (
        "make bench-report writes it"
    )


def test_no_model_is_dropped_once_it_was_tried(newest):
    tried = json.loads(newest.read_text())["models"]
    assert not tried.keys() - zoo.MODELS.keys()


def test_the_list_has_a_hundred_models_and_ten_of_each_library():
    names = [model.library for model in zoo.MODELS.values()]
    assert len(names) >= 100 and min(map(names.count, names)) >= 10


def test_a_model_on_the_page():
    text = page.text({"models": {"timm a": ROW}, "versions": {"torch": "2"}, "device": "d", "date": "now"}, "r.json")
    assert "| a | 9 | 7 | 3 of 4 (training 4) | 1e-15 | 0 | 2e-14 | 3e-13 | 4e-15 | 2 | 1 | 0.75x |" in text
    assert "| timm | 1 | 9 | 7 | 3 of 4 | 75.0% | 0 | 0 | 0 | 2 | 1 |" in text and "| used N times | 2 | 1 |" in text
    assert "- timm a: stem.conv is not fused with both (conv+bn: used 2 times)" in text
    assert "d; torch 2; now; [r.json](../bench/results/r.json)." in text


def test_wrong_slow_and_unfinished_models_are_on_the_page():
    nan, killed = ROW["training"] | {"gradient": float("nan")}, "more than 240 s of processor time"
    bad = ROW | {
        "training": nan,
        "frozen": {"error": "ValueError: x"},
        "time": {"plain": 2.0, "fused": 2.3, "again": 2.1},
    }
    assert verdict.wrong(bad) == ["gradient in training is off by nan"] and not verdict.wrong(ROW)
    near = {"training": {"output": 1e-7, "rounding": {"output": 2e-8}}}
    assert not verdict.wrong(near) and verdict.wrong({"training": near["training"] | {"output": 1e-6}})
    assert verdict.unfinished(bad) == ["frozen: ValueError: x"] and not verdict.unfinished(ROW)
    assert verdict.unfinished({"library": "timm", "died": killed}) == [killed]
    assert verdict.slower(bad) and not verdict.slower(ROW) and not verdict.slower({"library": "timm"})
    silent = ROW | {"eval": {"listed": 7, "reasons": {"none given": 3}}}
    assert verdict.unexplained(silent) == ["2 convolutions are not in the report", "3 chains end without a reason"]
    assert not verdict.unexplained(ROW) and not verdict.unexplained({"library": "timm"})
    result = {"models": {"timm a": bad}, "versions": {}, "device": "", "date": ""}
    assert "| timm | 1 | 9 | 7 | 3 of 4 | 75.0% | 1 | 1 | 1 | 2 | 1 |" in page.text(result, "r.json")
    assert "off by nan" in verdict.line("timm a", bad) and killed in verdict.line(
        "timm a", {"library": "timm", "died": killed}
    )


def test_an_error_is_relative_to_the_largest_value():
    torch = pytest.importorskip("torch")
    one, two = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 4.5])
    assert errors.error([two, 3], [one, 3]) == 0.125 and errors.error([one], [one]) == 0.0
    assert errors.error([one, 1e-9 * two], [one, 1e-9 * one], common=True) < 1e-6
    assert errors.error([one * float("nan")], [one]) != errors.error([one], [one])
    for got in ([], [one, one], [None], [one.double()], [3]):
        with pytest.raises(RuntimeError):
            errors.error(got, [one])


def test_a_report_is_compared_with_the_count():
    result = {"both": {"a"}, "ends": {"b": "conv+bn: an output of the graph"}}
    row = measure.compared([("a", "b"), ("b",), ("c",)], result)
    assert row["activated"] == 1
    assert row["missed"] == {"b": "conv+bn: an output of the graph", "c": "not in the report"}
    assert measure.first_sentence("RuntimeError: no. In /some/file.py") == "RuntimeError: no"
    one = "its addition is fused into layer2.0.conv2"
    assert measure.normalized(one) == measure.normalized("its addition is fused into another layer")
    assert measure.normalized("it has 5 dimensions, not (4, 4)") == "it has N dimensions, not N"
