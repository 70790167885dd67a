"""A pytest hook: after a test that lost the GPU, as by an illegal access, no other test runs in its process.

Each would fail within milliseconds, and pytest-xdist would give the worker all remaining tests. When the worker exits,
xdist starts another one; the test then counts as failed twice, once as a crash of its worker.
"""

from __future__ import annotations

import os

import pytest

from atrous import testing


@pytest.hookimpl(trylast=True)  # the report is sent first
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not (report.failed and testing.gpu_lost()):
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
    pytest.exit(f"{report.nodeid}: nothing runs on the GPU in this process any more", returncode=1)
