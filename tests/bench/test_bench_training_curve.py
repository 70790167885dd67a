"""bench.commands.training_curve: medians over seeds, a line for each row, and the picture of the newest results."""

import json

import pytest

from bench.commands import training_curve
from bench.commands.training_curve import Curve
from bench.report import curves

EXACT = Curve([2.0, 1.0, 0.5], [1.0], 0.75)


def row(precision, seed, eager, fused):
    """A row whose runs are off by these numbers from EXACT."""
    runs = {
        kind: Curve([v + off for v in EXACT[0]], [1 + 3 * off], 0.5)
        for kind, off in (("eager", eager), ("fused", fused))
    }
    errors = {kind: curve.errors(EXACT) for kind, curve in runs.items()}
    shown = {kind: curve._asdict() for kind, curve in {"fp64": EXACT, **runs}.items()}
    return {"seed": seed, "precision": precision, "errors": errors, "curves": shown}


ROWS = [
    row(precision, seed, *off) for precision in ("fp32", "bf16") for seed, off in enumerate([(2, 3), (2, 5), (2, 99)])
]


def test_ratios_are_those_of_the_medians():
    assert EXACT.errors(EXACT) == {"training": [0.0] * 3, "held out": [0.0]}
    assert training_curve.ratios(ROWS, "fp32") == pytest.approx({"training": 2.5, "held out": 2.5})
    lines = training_curve.text(ROWS)
    assert (
        "seed 0 fp32: median |loss - fp64's| 2.0e+00 eager, 3.0e+00 fused; held-out images right: fp64 75.0%"
        in lines[0]
    )
    assert lines[-1] == "bf16: fused over eager 2.50x training, 2.50x held out"


def test_a_drawn_result(tmp_path):
    result = {
        "device": "a CPU", "capability": "AVX2", "threads": 1, "date": "2026-11-29", "versions": {"torch": "2.13.0"},
        "steps": 3, "seeds": 3, "rows": ROWS[::3],
        "ratios": dict.fromkeys(("fp32", "bf16"), {"training": 2.5, "held out": 0.5}),
    }  # fmt: skip
    source = tmp_path / "training-curve-cpu-2026-11-29.json"
    source.write_text(json.dumps(result))
    assert training_curve.main(["--draw", str(source), "--plot", str(tmp_path / "a.png")]) == 0
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and source.name.encode() in content
    assert "fp32 2.50x training, 0.50x held out; bf16 autocast 2.50x" in curves.described(curves.newest(tmp_path))[-1]


def test_the_page_shows_the_newest_results(tmp_path):
    text = curves.PAGE.read_text()
    assert curves.page(text) == text, "make bench-report writes it"
    assert f"({curves.PICTURE.name})" in text
    with pytest.raises(ValueError, match="training curve: begin"):
        curves.page("nothing")


def test_the_picture_is_that_of_the_newest_results():
    assert curves.newest().name.encode() in curves.PICTURE.read_bytes(), (
        "python -m bench.commands.training_curve --json ... --plot ... writes both"
    )
