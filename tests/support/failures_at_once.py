"""A pytest plugin that prints the traceback of a failed test at once, and not at the end of the run.

If a test hangs, the run has no end: pytest-xdist waits 10 seconds for its workers before pytest prints the failures,
and .ci/gpu kills a step 5 seconds after it has interrupted it (bench/gpu/process_group.py). conftest.py registers this
plugin if --failures-at-once is given.
"""

from __future__ import annotations

import pytest


class FailuresAtOnce:
    """Prints each failure to the terminal, which is looked up then: it is configured after conftest.py."""

    def __init__(self, config: pytest.Config):
        self.config = config

    @pytest.hookimpl(trylast=True)  # behind the line of the terminal that says that the test failed
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if not report.failed or terminal is None:
            return
        terminal.ensure_newline()
        terminal.write_sep("_", f"{report.nodeid}, {report.when}")
        terminal.write_line(report.longreprtext)
        terminal.flush()  # a process that is killed writes nothing more


def register(config: pytest.Config) -> None:
    """Registers the plugin in the process that prints, which gets the reports of all workers of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config), "failures_at_once")
