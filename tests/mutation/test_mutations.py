"""Faults that are planted one at a time: each fails the test that it is listed with, by an assertion."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import kernel_mutations as kernels
import measure_mutations as measures
import mutation_tree
import pass_mutations as passes
import pytest
from mutation import Mutation

from atrous import ops

ROOT = Path(__file__).parents[2]
AREAS = {
    "epilogues": kernels.EPILOGUES, "legality of patterns": passes.LEGALITY, "Winograd": kernels.TRANSFORMS,
    "audit": measures.AUDIT, "metrics": measures.MEASURES, "choices": passes.CHOICES,
}  # fmt: skip
MUTATIONS: dict[str, Mutation] = {name: one for area in AREAS.values() for name, one in area.items()}


def test_the_list_is_valid():
    """Each text is in its file once, and each test exists: a change of either must not leave a fault unplanted."""
    assert len(MUTATIONS) == sum(map(len, AREAS.values())) >= 30 and min(map(len, AREAS.values())) >= 5
    sources = {file: (ROOT / file).read_text() for file in {mutation.file for mutation in MUTATIONS.values()}}
    for name, mutation in MUTATIONS.items():
        assert sources[mutation.file].count(mutation.right) == 1 and mutation.wrong != mutation.right, name
        assert all((ROOT / source).exists() for source in mutation.sources), name
    paths = {mutation.test.partition("::")[0] for mutation in MUTATIONS.values()}
    tests = {
        path: {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, "name")}
        for path in paths
    }
    for name, mutation in MUTATIONS.items():
        path, _, function = mutation.test.partition("[")[0].partition("::")
        assert function in tests[path], name


@pytest.mark.gate
def test_the_listed_parameters_exist():
    """pytest names each test of the list that it does not find."""
    tests = sorted({mutation.test for mutation in MUTATIONS.values() if not mutation.interpreted})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *tests]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.gate
@pytest.mark.drawn(20)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_fails_its_test(name, tmp_path):
    mutation = MUTATIONS[name]
    if mutation.interpreted:
        pytest.importorskip("triton")
    if mutation.sources and not ops.library_loaded:
        pytest.skip("libatrous.so is not built here")
    tree = mutation_tree.copy_tree(tmp_path / "tree")
    right = mutation_tree.run_test(tree, mutation.test, mutation.interpreted)
    if right.status == 0 and right.skipped and not right.passed:
        pytest.skip(f"{mutation.test} is skipped here")
    assert right.status == 0 and right.passed, right.output
    mutation_tree.plant(tree, mutation.file, mutation.right, mutation.wrong)
    if mutation.sources:
        mutation_tree.link(tree, mutation.sources)
    wrong = mutation_tree.run_test(tree, mutation.test, mutation.interpreted)
    assert wrong.asserted, (
        f"expected {mutation.test} to fail by an assertion, got status {wrong.status}\n{wrong.output}"
    )
