"""A pytest plugin that writes down how each case ended on each backend: `-p reliability.record --outcomes FILE`.

FILE is a JSON object: file of tests -> test -> backend -> {"same": count, "refused": count, "skipped": {reason:
count}}. A test with several parameters counts once for each; backend "" is a test that has no backend.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import wraps
from pathlib import Path

import pytest

SEEN: set[str] = set()  # outcomes of the running test
RECORDED: dict[str, dict[str, dict[str, dict]]] = {}


def pytest_addoption(parser):
    parser.addoption("--outcomes", type=Path, required=True, help="the file that the outcomes are written to")


def pytest_collection():
    """Before the tests import these functions by name."""
    import oracle

    oracle.agree = _shows(oracle.agree, "same")
    oracle.refuse = _shows(oracle.refuse, "refused")
    oracle.agree_or_refuse = _either(oracle)
    pytest.raises = _shows(pytest.raises, "refused")


def _shows(function, outcome: str):
    @wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        SEEN.add(outcome)
        return result

    return call


def _either(oracle):
    """agree_or_refuse, with which of both it was."""
    check, refusals = oracle.agree_or_refuse, oracle.REFUSALS

    @wraps(check)
    def call(ours, *args, **kwargs):
        def watched():
            try:
                result = ours()
            except refusals:
                SEEN.add("refused")
                raise
            SEEN.add("same")
            return result

        return check(watched, *args, **kwargs)

    return call


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    SEEN.clear()
    callspec = getattr(item, "callspec", None)
    item.user_properties.append(("backend", callspec.params.get("backend", "") if callspec else ""))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        report.user_properties.append(("shown", sorted(SEEN)))
    return report


def pytest_runtest_logreport(report):
    """In the controlling process, for each test of each worker."""
    properties = dict(report.user_properties)
    if not (report.when == "call" or report.skipped) or report.failed:
        return
    file, _, name = report.nodeid.partition("[")[0].partition("::")
    outcomes = RECORDED.setdefault(Path(file).name, {}).setdefault(name, {}).setdefault(properties["backend"], {})
    if report.skipped:
        reasons = Counter(outcomes.get("skipped", {}))
        reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        outcomes["skipped"] = dict(reasons)
        return
    shown = properties["shown"]
    outcome = "refused" if shown == ["refused"] else "same"
    outcomes[outcome] = outcomes.get(outcome, 0) + 1


def pytest_sessionfinish(session, exitstatus):
    if not hasattr(session.config, "workerinput"):
        file = session.config.getoption("--outcomes")
        file.write_text(json.dumps(RECORDED, indent=1, sort_keys=True) + "\n")
