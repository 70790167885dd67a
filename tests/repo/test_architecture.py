"""The laws of the house: who may import whom, and what may be imported at all."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {"activation", "arguments", "checks", "layout", "models", "prelu", "reference", "spec", "synchronise"}
# part -> the parts, besides the leaves, that it may import; "never up"
MAY_IMPORT = {
    **{leaf: set() for leaf in LEAVES},
    "triton_kernels": set(),
    "packs": {"ops_cuda"},
    "tuning": {"triton_kernels"},
    "ops": {"triton_kernels", "tuning"},
    "backends": {"ops", "ops_build", "ops_cuda", "triton_kernels", "tuning"},
    "dispatch": {"backends", "triton_kernels", "tuning"},
    "traced": set(),
    "recipes": {"traced"},
    "autograd": {"recipes"},
    "functional": {"autograd", "dispatch", "ops_cuda"},
    "nn": {"functional", "packs"},
    "fusion": {"autograd_pool", "dispatch", "functional", "nn"},
    "testing": {"tuning"},
    "timing": set(),
    "tuner": {
        "dispatch",
        "functional",
        "packs",
        "sites",
        "testing",
        "timing",
        "triton_kernels",
        "tuning",
        "tuning_format",
    },
    "walk": {"nn"},
    "sites": {"fusion", "walk"},
    "training_cost": {"fusion", "walk"},
    "target": {"dispatch", "triton_kernels", "tuning"},
    "explain": {"dispatch", "nn", "sites", "target", "triton_kernels", "tuning", "tuning_format", "walk", "walk_table"},
    "export": {"dispatch", "fusion"},
    "slopes": set(),
    "build_info": {"dispatch", "ops", "ops_build", "tuning_device"},
}
ALONE = {"reference", "triton_kernels"}  # not even a leaf
FACES = {"__init__", "__main__", "cli", "demo"}  # they may import anything (demo_*.py and *_command.py too)


FILES = sorted([*ROOT.glob("pyops/**/*.py"), *ROOT.glob("triton_kernels/*.py")])


def part_of(path: Path) -> str:
    """pyops/fusion/twin.py -> fusion, pyops/nn.py -> nn, triton_kernels/conv.py -> triton_kernels."""
    folder, *inside = path.relative_to(ROOT).with_suffix("").parts
    return inside[0] if folder == "pyops" else folder


def imported_parts(path: Path) -> set[str]:
    """The parts of our package that a file imports, resolved from its relative imports."""
    folder, *inside = path.relative_to(ROOT).parts
    package = ["atrous", *(inside[:-1] if folder == "pyops" else [folder])]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            names = [base] if node.module else [[*base[:-1], alias.name] for alias in node.names]
            found |= {name[1] for name in names if len(name) > 1}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    part = part_of(path)
    if part in FACES or part.startswith("demo_") or part.endswith("_command"):
        return
    family = next((known for known in MAY_IMPORT if part == known or part.startswith(f"{known}_")), None)
    assert family, f"{path.name}: say in MAY_IMPORT what it may import"
    others = {name for name in imported_parts(path) if not name.startswith(family)}
    allowed = MAY_IMPORT[family] | (set() if family in ALONE else LEAVES)
    assert others <= allowed, f"{path.name} imports {sorted(others - allowed)}: up, or sideways"


def test_rows_do_not_import_one_another():
    rows = {"library", "native", "triton"}
    for row in rows:
        text = (ROOT / "pyops/backends" / f"{row}.py").read_text()
        assert not [
            other for other in rows - {row} if re.search(rf"from \.({other}) |from \. import .*\b{other}\b", text)
        ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_the_bare_folder_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & {"pyops", "triton_kernels", "atrous"}, ast.unparse(node)


def test_triton_kernels_import_torch_and_triton_only():
    for path in ROOT.glob("triton_kernels/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.split(".")[0] for name in names}
            assert tops <= {"torch", "triton", *sys.stdlib_module_names}, (path.name, tops)


def test_every_environment_variable_is_a_known_one():
    """Options are arguments. The environment may name Triton's interpreter and the user's cache; setup.py has more."""
    found = set()
    for path in FILES:
        found |= set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)""", path.read_text()))
    assert found <= {"TRITON_INTERPRET", "XDG_CACHE_HOME"}
