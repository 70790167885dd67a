"""python -m atrous audit: its text, JSON, pictures and page, and the answers to a user's errors."""

import json
import re

import pytest

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def lines_of(answer):
    status, out, err = answer
    assert status == 0 and err == "", answer
    return out.splitlines()


def test_rates(run, tmp_path):
    lines = lines_of(run("audit", "2,2,2", "--json", str(tmp_path / "audit.json")))
    text = "\n".join(lines)
    for part in (
        "13x13 pixels, 169 positions",
        "49 of them, 29.0%",
        "120 holes, the largest 1x1",
        "rates 1, 2, 3 reach 13",
    ):
        assert part in text
    record = json.loads((tmp_path / "audit.json").read_text())
    assert (record["audited"], record["reached"], record["holes"]) == ("2,2,2", 49, 120)
    assert record["suggestion"]["stack"] == {"rates": [1, 2, 3], "kernel_sizes": [3, 3, 3], "receptive_field": 13}
    assert '"receptive_field": [13, 13]' in (tmp_path / "audit.json").read_text()


def test_the_map_shows_the_holes(run):
    """Half a block for each position: rates 2, 2, 2 read every second one."""
    lines = lines_of(run("audit", "2,2,2"))
    assert sum(line.startswith("▀ ▀ ▀ ▀ ▀ ▀ ▀") for line in lines) == 7


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_narrow_terminal(run, columns):
    for arguments in (["1,2,9", "--size", "28"], ["2,4,8"], ["resnet18", "--size", "64", "--output-stride", "8"]):
        lines = lines_of(run("audit", *arguments, columns=columns))
        assert max(map(len, lines)) <= columns + 4 * (columns == 40), arguments


def test_a_terminal_without_block_characters(run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    from atrous.tools.audit import command

    monkeypatch.setattr(command.sys, "stdout", type("Plain", (), {"encoding": "ascii", "write": len, "flush": len}))
    assert command._blocks() == " .:*#"


def test_model(run):
    text = "\n".join(lines_of(run("audit", "resnet34", "--output-stride", "8", "--size", "64", columns=100)))
    for part in (
        "resnet34 --output-stride 8, input 64x64",
        "899x899 pixels",
        "no holes",
        "layer4.0.conv2 + 4 alike",
        "GMAC",
    ):
        assert part in text


def test_kernel_sizes(run):
    assert "12x12 pixels" in "\n".join(lines_of(run("audit", "2,3", "--kernel-sizes", "2,4")))
    assert "9x9 pixels" in "\n".join(lines_of(run("audit", "1,1", "--kernel-sizes", "5")))


def test_require_coverage(run):
    assert run("audit", "1,2,5", "--require-coverage", "1.0")[0] == 0
    assert run("audit", "2,4,8", "--require-coverage", "0.25")[0] == 0
    status, out, err = run("audit", "2,2,2", "--require-coverage", "1.0")
    assert status == 1 and "13x13" in out
    assert err == "atrous audit: --require-coverage: expected 1, got 0.2899\n"


def test_pictures_and_page(run, tmp_path):
    photograph = tmp_path / "photograph.png"
    Image.new("RGB", (300, 200), (90, 120, 150)).save(photograph)
    png, html = tmp_path / "audit.png", tmp_path / "audit.html"
    lines_of(run("audit", "2,4,8", "--plot", str(png), "--html", str(html), "--image", str(photograph)))
    width, height = Image.open(png).size
    assert width > 5 * 400 and height > 400  # the field, two suggestions, the image and a part of it
    page = html.read_text()
    assert "26.8%" in page and "616 holes" in page and "data:image/png;base64," in page
    assert not re.search(r"https?://|<script|<link", page)
    lines_of(run("audit", "resnet34", "--size", "64", "--html", str(html), "--image", str(photograph)))
    assert "layer4.0.conv2 + 4 alike" in html.read_text() and "899x899" in html.read_text()


@pytest.mark.parametrize("arguments, message", [
    (["0,2"], "RATES: expected positive integers, as in 1,2,5, got '0,2'"),
    (["1.5,2"], "RATES: expected positive integers"),
    (["1,x"], "RATES: expected positive integers, as in 1,2,5, got '1,x'"),
    (["x,1"], "RATES: expected positive integers, as in 1,2,5, got 'x,1'"),
    (["2,2", "--kernel-sizes", "3,x"], "--kernel-sizes: expected positive integers"),
    (["2,2", "--kernel-sizes", "3,3,3"], "--kernel-sizes: expected one, or one for each of 2 rates, got 3"),
    (["2,2", "--output-stride", "8"], "--output-stride is for a model, not for 2,2"),
    (["resnet34", "--kernel-sizes", "3"], "--kernel-sizes is for rates, not for resnet34"),
    (["5000"], "RATES: expected a field of at most 8192 pixels, got 10001"),
    (["torch.nn:Identity"], "torch.nn:Identity: expected a model with convolutions, got Identity without one"),
    (["resnet43"], "drn_d_22, prelu_net14 or package.module:factory, got 'resnet43'"),
    (["2,2", "--image", "a.png"], "--image: expected --plot or --html, where it is drawn, got neither"),
    (["2,2", "--plot", "none/a.png"], "--plot: expected a file that can be written, got 'none/a.png'"),
    (["2,2", "--require-coverage", "2"], "expected a number from 0 to 1, got '2'"),
    (["2,2", "--plot", "a.png", "--image", "none.png"], "--image: cannot read none.png: No such file"),
])  # fmt: skip
def test_errors(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("audit", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())
