"""make versions: one wheel for each Python, a row for each combination, and the table; the versions in CHANGELOG.md."""

import json
import re

import pytest
from reliability import environments, versions
from reliability.environments import Combination, Missing

from bench.report import tried

ROOT = versions.ROOT
PASSED = {"failed": 0, "passed": 7, "skipped": 2, "failures": []}
ROWS = [
    {"python": "3.10", "torch": "2.9.1", "wheel": "a.whl", "built_with": "2.9.1+cpu", **PASSED},
    {"python": "3.10", "torch": "2.11.0", "wheel": "a.whl", "built_with": "2.9.1+cpu",
     "failed": 1, "passed": 6, "skipped": 2, "failures": ["tests.a::test_b"]},
    {"python": "3.9", "torch": "2.9.1", "missing": "no python3.9 on the PATH"},
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    result = {"device": "a CPU", "date": "2026-11-29", "tests": {"folders": ["tests/api"], "drawn": 9}, "rows": ROWS}
    path = tmp_path / "versions-2026-11-29.json"
    path.write_text(json.dumps(result))
    return path


def test_the_table(path):
    assert versions.table(path) == [
        "| Python | torch 2.9.1 | torch 2.11.0 |",
        "|---|---|---|",
        "| 3.9 | not available here | not run |",
        "| 3.10 | 7 passed, 2 skipped | **1 failed**, 6 passed, 2 skipped |",
        "",
        "- Python 3.9, torch 2.9.1 is not available here: no python3.9 on the PATH",
        "- Python 3.10, torch 2.11.0 fails: `tests.a::test_b`",
    ]
    assert "one in 9; " in versions.described(path) and "(Python 3.10 with torch 2.9.1+cpu)" in versions.described(path)
    assert versions.newest(path.parent) == path


def test_one_wheel_goes_into_each_torch(monkeypatch):
    """It is built with the oldest torch that there is; what is missing or raises does not end the run."""
    calls = []

    def create(combination):
        if combination.torch == "2.9.1":
            raise Missing("no such torch")

    def build(combination):
        calls.append(f"built in {combination.torch}")
        return f"wheel of {combination.torch}"

    def install(combination, wheel):
        if combination.python == "3.9":
            raise RuntimeError("does not load\nand more")
        return {"wheel": wheel}

    for function in (create, build, install):
        monkeypatch.setattr(environments, function.__name__, function)
    monkeypatch.setattr(environments, "test", lambda combination: PASSED)
    monkeypatch.setattr(environments, "remove", lambda combination: calls.append(f"removed {combination.torch}"))
    asked = [Combination.parse(text) for text in ("3.10/2.13.0", "3.10/2.11.0", "3.10/2.9.1", "3.9/2.11.0")]
    rows = list(versions.measured(asked))
    assert [(row["python"], row["torch"], row.get("wheel")) for row in rows] == [
        ("3.9", "2.11.0", None),
        ("3.10", "2.9.1", None),
        ("3.10", "2.11.0", "wheel of 2.11.0"),
        ("3.10", "2.13.0", "wheel of 2.11.0"),
    ]
    assert [versions.cell(row) for row in rows[:2]] == ["fails: does not load", "not available here"]
    built = ["built in 2.11.0", "removed 2.11.0"]
    assert calls == [*built, "removed 2.9.1", *built, "removed 2.13.0"]


def test_a_python_that_is_not_there_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "BUILD", tmp_path)
    with pytest.raises(Missing, match=r"no python9\.9 on the PATH"):
        environments.create(Combination("9.9", "2.13.0"))


@pytest.mark.parametrize("text", ["3.11", "3.11/", "/2.13.0", "3.11/newest", "3.11-2.13.0"])
def test_a_wrong_combination_is_named(text, capsys):
    with pytest.raises(SystemExit):
        versions.main(["--versions", text])
    assert f"expected Python/torch as in 3.11/2.13.0, got {text!r}" in capsys.readouterr().err


def test_the_weekly_workflow_runs_the_default_list():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text())["jobs"]["versions"]
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert command.startswith('make versions VERSIONS="')
    asked = [
        Combination.parse(word)
        for python in job["strategy"]["matrix"]["python"]
        for word in re.findall(r"[\d.]+/[\d.]+", command.replace("${{ matrix.python }}", python))
    ]
    assert asked == versions.ALL


def test_counts_of_a_report():
    inside = {"b": "", "c": "<skipped/>", "d": "<failure/>", "e": "<error/>"}
    cases = "".join(f'<testcase classname="a" name="{name}">{inner}</testcase>' for name, inner in inside.items())
    head = '<testsuite tests="4" skipped="1" failures="1" errors="1" time="8.6">'
    assert environments.counts(f"<testsuites>{head}{cases}</testsuite></testsuites>") == {
        "passed": 1, "failed": 2, "skipped": 1, "failures": ["a::d", "a::e"], "seconds": 9,
    }  # fmt: skip


def test_the_change_log_names_the_versions_of_the_results(path):
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text == tried.changelog(text, ROOT / "bench" / "results"), "make bench-report writes it"
    assert "timm 1." in text and "onnxruntime" in text
    first = tried.lines(path.parent)[0]
    assert first.startswith("- torch 2.9.1 with Python 3.10: the operators")  # 2.11.0 has a failed test
    with pytest.raises(ValueError, match="tried: begin"):
        tried.changelog("nothing", path.parent)
