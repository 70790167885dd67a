"""`report` on tiny runs: the page parses and holds together, its figures are those of evaluate, --require-area."""

import json
from html.parser import HTMLParser

import pytest
import vessel_images
from PIL import Image

from examples.vessels import cli, metrics
from examples.vessels.report import check

pytestmark = pytest.mark.gate  # they train

VOID = {"img", "meta"}
RUNS = {"fused": [], "plain": ["--plain"], "relu": ["--plain", "--act", "relu"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of three runs: a fused one, the same plain, and one with another activation."""
    data, root = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs")
    vessel_images.draw(data, test=3)
    for name, more in RUNS.items():
        assert cli.main(vessel_images.arguments("train", data, root / name, *more, epochs=3)) == 0
    return root


@pytest.fixture(scope="module")
def written(trained):
    """The folder of the report on all runs."""
    output = trained / "report"
    assert cli.main(command([trained / name for name in RUNS], output)) == 0
    return output


def command(runs, output, *more):
    words = ["report", *runs, "--output", output, "--resamples", 50, "--pictures", 1, "--device", "cpu", *more]
    return [str(word) for word in words]


class Reader(HTMLParser):
    """Collects images and text, and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert not any((values.get(name) or "").startswith(("http", "//")) for name in ("src", "href"))
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_parses_and_its_images_are_there(written):
    page = (written / "index.html").read_text()
    assert "http:" not in page and "https:" not in page
    reader = read(page)
    expected = {"areas.png", "losses.png", "dead.png", "images_1.png", "images_3.png", "slopes_1.png", "audit_1.png"}
    assert expected <= set(reader.images) and "slopes_3.png" not in reader.images  # the third has no slopes
    for name in reader.images:
        with Image.open(written / name) as picture:
            picture.load()
    text = " ".join(reader.words)
    for title in ("Figures beside the published ones", "Learned slopes by depth: fused", "Audit of the head's rates"):
        assert title in text
    assert "fused: other images, so no published figure is comparable" in text and "0.8189" in text
    assert text.index("The published run: ") < text.index("Figures beside")
    assert "fused (fused) beside plain (plain): " in text


def test_the_figures_are_those_of_evaluate(trained, written):
    figures = json.loads((written / "report.json").read_text())["runs"]
    assert [run["name"] for run in figures] == list(RUNS)
    json_file = trained / "fused.json"
    assert cli.main(["evaluate", str(trained / "fused"), "--json", str(json_file), "--device", "cpu"]) == 0
    expected, ours = (
        value["regions"]["field"]["areas"]["pooled"]["roc_auc"]["value"]
        for value in (json.loads(json_file.read_text()), figures[0]["figures"])
    )
    assert ours == pytest.approx(expected, abs=1e-6)
    assert all(run["figures"]["thresholds"]["validation"] is not None for run in figures)
    assert f"{figures[0]['figures']['regions']['all']['half']['pooled']['mcc']['value']:.4f}" in (
        (written / "index.html").read_text()
    )
    assert figures[0]["saved_bytes"]["fused"] < figures[0]["saved_bytes"]["plain"]


def test_require_area(trained, tmp_path, monkeypatch, capsys):
    run = trained / "fused"
    assert cli.main(command([run], tmp_path / "high", "--require-area", "0.9999")) == 1
    assert "--require-area: fused: expected a ROC area of at least 0.9999, got 0." in capsys.readouterr().err
    assert (tmp_path / "high/index.html").exists()
    # A filter that takes bright pixels for vessels, which are dark.
    monkeypatch.setattr(metrics, "frangi", lambda image, field: image[..., 1] / 255.0)
    assert cli.main(command([run], tmp_path / "low", "--require-area", "0.2")) == 0
    assert "--require-area 0.2: met by fused" in capsys.readouterr().out


def test_the_check_wants_the_area_and_intervals_that_are_apart():
    def figures(value, low, high):
        area = {"value": value, "low": low, "high": high}
        return {"regions": {"field": {"areas": {"pooled": {"roc_auc": area}}}}}

    model, below, near = figures(0.96, 0.955, 0.97), figures(0.9, 0.88, 0.92), figures(0.95, 0.94, 0.956)
    assert check.problems("a", model, below, 0.95) == []
    assert len(check.problems("a", model, below, 0.961)) == 1
    assert "intervals apart" in check.problems("a", model, near, 0.95)[0]
    assert "one image has no interval" in check.problems("a", figures(0.96, None, None), below, 0.95)[0]
    assert len(check.problems("a", figures(None, None, None), below, 0.95)) == 2


def test_errors(trained, tmp_path, capsys):
    assert cli.main(command([tmp_path], tmp_path / "out")) == 2
    assert "expected a checkpoint" in capsys.readouterr().err
    assert cli.main(command([trained / "fused", trained / "fused"], tmp_path / "out")) == 2
    assert "RUN: expected different runs, got" in capsys.readouterr().err
    assert cli.main(command([trained / "fused"], tmp_path / "out", "--patches", "--stride", 25)) == 2
    assert "--stride: expected at most the patch's side, 24, got 25" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
