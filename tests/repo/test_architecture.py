"""Import rules of the package: ordered layers, no cycles, independent backends, torch's private names in two files."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atrous.backends import selection

ROOT = Path(__file__).parents[2]
# From the lowest layer to the highest. A file imports from its own folder and from lower layers, nothing else.
LAYERS = (
    {"reference", "triton_kernels"},
    {"core"},
    {"autograd", "models", "tuning"},
    {"ops", "testing"},
    {"backends"},
    {"functional"},
    {"nn"},
    {"audit", "fusion"},
    {"tools"},
    {"__init__", "__main__"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
ALONE = {"reference", "triton_kernels"}  # they import nothing else of the package, at any level
BACKENDS = {f"backends.{name}" for name in selection.backends()}
MAX_MODULES, MAX_LAYERS = 14, 10
TORCH_COMPAT = "core.torch_compat"
COMPAT = {TORCH_COMPAT, "core.dynamo_compat", "core.graph_compat"}  # torch itself, and its compilers
DOCUMENTED = {"_asdict", "_exit", "_fields", "_getframe", "_make", "_replace"}  # attributes of NamedTuple, os and sys
ENVIRONMENT = {"TRITON_INTERPRET", "XDG_CACHE_HOME"}


def dotted(path: Path) -> str:
    """pyops/nn.py -> nn, pyops/core/spec.py -> core.spec, pyops/fusion/__init__.py -> fusion, as inside atrous."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "pyops" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


PATHS = {dotted(path): path for folder in ("pyops", "triton_kernels") for path in sorted((ROOT / folder).rglob("*.py"))}
SOURCES = {name: path.read_text() for name, path in PATHS.items()}
PACKAGES = {name for name, path in PATHS.items() if path.name == "__init__.py"}


def top(name: str) -> str:
    return name.partition(".")[0]


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """ast.walk without the bodies of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from runtime_nodes(node)


def imports(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """The files of the package that each file imports at runtime, at its top or inside a function."""
    graph: dict[str, set[str]] = {}
    for name, text in sources.items():
        parts = [] if name == "__init__" else name.split(".")
        package = parts if name in packages else parts[:-1]
        targets = set()
        for node in runtime_nodes(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                module = ".".join(part for part in base if part) or "__init__"
                for alias in node.names:
                    inner = alias.name if module == "__init__" else f"{module}.{alias.name}"
                    targets.add(inner if inner in sources else module)
        graph[name] = targets - {name}
    return graph


GRAPH = imports(SOURCES, PACKAGES)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that break the law of the layers."""
    edges = [(a, b) for a, targets in graph.items() for b in targets if top(a) != top(b)]
    wrong = [(a, b) for a, b in edges if top(a) in ALONE or LEVEL[top(b)] >= LEVEL[top(a)]]
    return sorted(f"{a} imports {b}" for a, b in wrong)


def private_names(text: str) -> set[str]:
    """Private names of torch that a source uses; operators of this package (torch.ops.atrous._x) are its own."""
    tree, aliases, names = ast.parse(text), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if top(alias.name) == "torch"}
            aliases |= {a.asname or top(a.name): a.name if a.asname else top(a.name) for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and top(node.module or "") == "torch":
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in inner:
            chain, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                chain, value = [value.attr, *chain], value.value
            if isinstance(value, ast.Name) and top(aliases.get(value.id, "")) == "torch":
                names.add(".".join([aliases[value.id], *chain]))
    private = {name for name in names if re.search(r"\._(?!_)", name) and not name.startswith("torch.ops.atrous")}
    return {re.sub(r"(\._\w+(\.\w+)?).*", r"\1", name) for name in private}


def private_attributes(sources: dict[str, str]) -> dict[str, set[str]]:
    """The private attributes that each source uses and that none defines: they are those of torch's objects."""
    nodes = {name: list(ast.walk(ast.parse(text))) for name, text in sources.items()}
    every = [node for inside in nodes.values() for node in inside]
    stored = [node for node in every if isinstance(getattr(node, "ctx", None), ast.Store)]
    own = {node.name for node in every if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | DOCUMENTED
    own |= {node.id for node in stored if isinstance(node, ast.Name)}
    own |= {node.attr for node in stored if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    own |= {node.attr for node in every if isinstance(node, ast.Attribute) and "ops.atrous" in ast.unparse(node.value)}
    used = {name: {node.attr for node in inside if isinstance(node, ast.Attribute)} for name, inside in nodes.items()}
    return {name: {attr for attr in names - own if re.match(r"_(?!_|atrous_)", attr)} for name, names in used.items()}


def test_imports_go_down():
    assert not upward(GRAPH)


def test_there_is_no_cycle_between_files():
    assert list(graphlib.TopologicalSorter(GRAPH).static_order())


def test_backends_do_not_import_one_another():
    """They share base, aten and prepack; selection alone imports them."""
    others = {name for name in GRAPH if top(name) == "backends"} - {"backends.selection"}
    assert not {(a, b) for a in others for b in GRAPH[a] & BACKENDS}


def test_modules_and_layers_are_few():
    modules = {top(name) for name in SOURCES}
    below = {module: {top(b) for a in GRAPH if top(a) == module for b in GRAPH[a]} - {module} for module in modules}
    depth: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(below).static_order():
        depth[module] = 1 + max((depth[lower] for lower in below[module]), default=0)
    own = modules - LAYERS[-1]
    layers = [sorted(m for m in modules if depth[m] == level) for level in range(1, max(depth.values()) + 1)]
    print(f"{len(own)} modules, {len(layers)} layers, {sum(map(len, below.values()))} edges between modules:", *layers)
    assert len(own) <= MAX_MODULES and len(layers) <= MAX_LAYERS


def test_private_names_of_torch_are_in_three_files():
    attributes = private_attributes(SOURCES)
    places = {name: private_names(text) | attributes[name] for name, text in SOURCES.items() if name not in COMPAT}
    lines = [f"{name}: {', '.join(sorted(names))}" for name, names in places.items() if names]
    print(*lines, sep="\n")
    assert not lines


def test_torch_compat_was_tried_with_the_versions_of_ci():
    places = {"requirements-dev.txt": r"^torch==(\S+)", ".github/workflows/gpu.yml": r'TORCH: "(.+)"'}
    versions = {re.search(place, (ROOT / path).read_text(), re.MULTILINE)[1] for path, place in places.items()}
    assert set(re.findall(r"torch (\d+\.\d+\.\d+)", ast.get_docstring(ast.parse(SOURCES[TORCH_COMPAT])))) == versions


def test_each_rule_finds_its_violation():
    sources = {"core": "", "core.spec": "from ..nn import Conv", "nn": "from .core import spec", "reference": ""}
    graph = imports(sources, {"core"})
    assert upward(graph) == ["core.spec imports nn"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()
    assert upward({"reference": {"core.spec"}, "core.spec": set()}) == ["reference imports core.spec"]
    text = (
        "import torch\nfrom torch import fx as f\nfrom torch._dynamo import x\ntorch._C.y()\nf._z; torch.ops.atrous._e"
    )
    assert private_names(text) == {"torch._dynamo.x", "torch._C.y", "torch.fx._z"}
    text = "class A:\n def _own(self): self._set = 1\ny._version; a._own(); a._set; y._atrous_mark; y.__class__"
    other = "m._modules = 1; m._modules._own; torch.ops.atrous._c"
    assert private_attributes({"a": text, "b": other}) == {"a": {"_version"}, "b": {"_modules"}}


def absolute_imports(text: str) -> set[str]:
    """The top-level packages that a source imports absolutely."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
    return {top(name) for name in names}


@pytest.mark.parametrize("name", SOURCES)
def test_imports_of_the_package_are_relative(name):
    assert not absolute_imports(SOURCES[name]) & {"pyops", "triton_kernels", "atrous"}


def test_triton_kernels_import_torch_and_triton_only():
    for name, text in SOURCES.items():
        if top(name) == "triton_kernels":
            assert absolute_imports(text) <= {"torch", "triton", *sys.stdlib_module_names}, name


def test_every_environment_variable_is_a_known_one():
    """Options are arguments. The environment names Triton's interpreter and the user's cache; setup.py reads more."""
    assert set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)""", "".join(SOURCES.values()))) <= ENVIRONMENT


def test_each_test_file_has_a_name_of_its_own():
    """pytest imports test files by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()
