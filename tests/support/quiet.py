"""A test that passes prints nothing: what it writes, it reads (capsys, capfd, a console of its own).

Whatever reaches the file descriptors counts: progress bars, the C++ side, processes a test starts. A stray
line is noise under somebody else's failure, and hides the line that a user would be startled by. Where
others' code speaks, or a run tells its progress to nobody who asks, the test is marked `prints`.
"""

from __future__ import annotations

import pytest

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    said = report.capstdout + report.capstderr
    spoken = call.when == "teardown" and said.strip() and not item.get_closest_marker("prints")
    if spoken and not item.stash[_failed]:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} prints to the terminal:\n{said}"
    return report
