"""The marker drawn(n): one of each n successive parameters of a test, by the seed; every one with --whole."""

from types import SimpleNamespace
from unittest import mock

import drawn
import pytest


class Item:
    """A test of pytest, as far as a draw looks at it."""

    def __init__(self, name, one_in=None):
        self.nodeid, self.marker = name, one_in and SimpleNamespace(args=(one_in,))

    def get_closest_marker(self, name):
        return self.marker if name == "drawn" else None


@pytest.fixture
def draw(monkeypatch):
    """draw(names, seed) -> the names that are left of a test with drawn(3) and of a test without a marker."""
    monkeypatch.delenv("TESTS_DRAWN", raising=False)

    def run(numbers, seed="1", whole=False):
        monkeypatch.setenv("GATES_SEED", seed)
        items = [Item(f"a.py::test_some[{n}]", 3) for n in numbers] + [Item(f"a.py::test_all[{n}]") for n in range(4)]
        every, config = [*items], mock.Mock()
        config.getoption.return_value = whole
        drawn.pytest_collection_modifyitems(config, items)
        gone = [item for call in config.hook.pytest_deselected.mock_calls for item in call.kwargs["items"]]
        assert sorted(map(id, [*items, *gone])) == sorted(map(id, every))
        return [int(item.nodeid[-2]) for item in items if item.marker], sum(not item.marker for item in items)

    return run


def test_one_of_each_three(draw):
    draws = [draw(range(7), str(seed)) for seed in range(40)]
    assert all([number // 3 for number in numbers] == [0, 1, 2] and others == 4 for numbers, others in draws)
    assert {number for numbers, _ in draws for number in numbers} == set(range(7))
    assert draw(range(7), "5") == draws[5] and draw(range(7), whole=True) == (list(range(7)), 4)
    assert draw([5]) == ([5], 4)  # a test that is named runs


def test_a_draw_of_every_test(draw, monkeypatch):
    monkeypatch.setenv("TESTS_DRAWN", "2")
    numbers, others = draw(range(7))
    assert len(numbers) == 3 and others == 2
