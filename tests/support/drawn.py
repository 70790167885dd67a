"""The marker drawn(n): of each n successive parameters of a test one runs, drawn by GATES_SEED; with --whole all run.

TESTS_DRAWN=n does so for every test, in the processes of Triton's interpreter too.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict

import pytest


@pytest.hookimpl(trylast=True)  # after -m and -k: draws from the tests that they leave
def pytest_collection_modifyitems(config, items):
    if config.getoption("--whole"):
        return
    groups = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("drawn")
        one_in = max(int(os.environ.get("TESTS_DRAWN", "1")), marker.args[0] if marker else 1)
        groups[item.nodeid.partition("[")[0], one_in].append(item)
    left = set()
    for (name, one_in), group in groups.items():
        draw = random.Random(f"{os.environ.get('GATES_SEED', '0')} {name}")
        left.update(draw.choice(group[first : first + one_in]) for first in range(0, len(group), one_in))
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = [item for item in items if item in left]
