"""README, CONTRIBUTING, docs/ and the docstrings of examples/: each snippet runs, each command is accepted by its
program, each file exists."""

import ast
import json
import re
import runpy
import struct
import sys

import documents
import pytest
from documents import ROOT

from bench.commands import vessel_step
from bench.report import cpu, picture, report

PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path: path.read_text() for path in PATHS if path.name != "api.md"}  # test_api_page.py compares that page
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
TEXTS |= {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in EXAMPLES}
COMMANDS = sorted({command for text in TEXTS.values() for command in documents.commands(text)})
# Commands that are not tried, and files that do not exist, with the reason.
EXCEPTIONS = {
    "pip install --no-build-isolation .": "test_packaging.py installs from the checkout",
    "pip install --no-build-isolation -e .": "test_packaging.py installs from the checkout",
    "pip install --no-deps -r requirements-cuda.txt": "downloads",
    "python setup.py build_ext --inplace": "builds csrc, as make setup does",
    "torchrun --nproc-per-node 2 examples/train_digits.py": "starts processes; test_distributed.py has their steps",
    "cmake -S examples/cpp -B build/cpp": "make cpp-example runs it",
    "cmake --build build/cpp": "make cpp-example runs it",
    "build/cpp/classify pyops/libatrous.so resnet34.pt2 photo.ppm": "make cpp-example runs it",
    "python3.12 -m venv ~/atrous": "makes an environment",
    "~/atrous/bin/pip install torch==2.11.0 triton==3.6.0 numpy hypothesis pytest pytest-benchmark pytest-xdist": (
        "downloads"
    ),
    "python -m bench.gpu.summary RESULTS_DIR": "reads a folder; tests/bench/gpu/test_summary.py runs it",
    "pyops/tuning/tables": "exists once a tuning table is shipped",
}


@pytest.mark.parametrize(
    "path", [path for path in TEXTS if documents.snippets(TEXTS[path])], ids=lambda path: path.name
)
def test_snippets_run_in_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in documents.snippets(TEXTS[path]):
        exec(compile(code, path.name, "exec"), names)


def test_the_segmentation_example_runs(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "segments.png"
    monkeypatch.setattr(sys, "argv", ["segment_features.py", "--size", "64", "--output", str(picture)])
    runpy.run_path(str(ROOT / "examples" / "segment_features.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "sites fused 27/28" in printed and "backbone: random weights" in printed
    # the map is 8x12: all taps of ASPP's three rates are outside, but for the middle one of nine
    assert "88.9% at rate 12, 88.9% at rate 24, 88.9% at rate 36" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in EXCEPTIONS])
def test_commands_are_accepted(command):
    assert not documents.problem(command)


def test_files_exist():
    known = documents.tree()
    wrong = {path.name: documents.missing(text, path.parent, known) for path, text in TEXTS.items()}
    assert not {name: left for name, files in wrong.items() if (left := [f for f in files if f not in EXCEPTIONS])}


def test_exceptions_are_needed():
    spans = {span for text in TEXTS.values() for span in documents.spans(text)}
    assert not EXCEPTIONS.keys() - set(COMMANDS) - spans


def test_the_page_of_the_experiment_shows_the_lines_of_its_file():
    page = (ROOT / "docs/experiment/README.md").read_text()
    (name,) = re.findall(r"\(\.\./\.\./(bench/results/vessel-step[\w.-]+)\)", page)
    rows = json.loads((ROOT / name).read_text())["rows"]
    assert len(rows) == 3 and all(f"    {vessel_step.text(row)}\n" in page for row in rows)


def test_the_readme_is_what_bench_report_writes():
    """Tables and sentences are those of bench/results, and so are the pictures, which have the size that is drawn."""
    readme, folder = TEXTS[ROOT / "README.md"], ROOT / "bench" / "results"
    assert report.report(readme, folder) == readme
    name = cpu.newest(report.folder_results(folder))
    for path, (_, inches) in picture.DRAWN.items():
        content = (ROOT / path).read_bytes()
        assert f"]({path.as_posix()})" in readme and content[:8] == b"\x89PNG\r\n\x1a\n" and name.encode() in content
        assert struct.unpack(">2I", content[16:24]) == tuple(round(side * picture.DPI) for side in inches)


@pytest.mark.parametrize(
    "command",
    [
        "make nothing", "make fuzz COUNTS=1", "python -m atrous fly", "python -m atrous tune resnet34 --no-such 1",
        ".ci/gpu rihgt", ".ci/gpu right --limit x", "python -m bench.nothing --json x", "python tests/none.py --json x",
        "python examples/train_digits.py --epoch three", "python setup.py develop", "cmake --fly",
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(command):
    assert documents.commands(f"It is `{command}`.") == documents.commands(f"So:\n\n    {command}  # why") == [command]
    assert documents.problem(command)


def test_a_wrong_file_is_found():
    text = (
        "[a](docs/none.md) [b](README.md#a) [c](https://x.y) `pyops/none.py` `none.cuh` `nn.py` `pyops/backends/NEW.py`"
    )
    text += " `tests/none/` `repo/` `x < 1` `conv/sm90_<dtype>.cu`\n\n    torchrun examples/none.py"
    assert documents.missing(text, ROOT, documents.tree()) == [
        "docs/none.md", "examples/none.py", "none.cuh", "pyops/none.py", "tests/none/",
    ]  # fmt: skip


def test_snippets_and_commands_of_a_text():
    text = "A.\n\n```python\nx = 1\n```\n\n```\nmake test && make lint\n```\n"
    assert documents.snippets(text) == ["x = 1\n"] and documents.commands(text) == ["make test", "make lint"]
