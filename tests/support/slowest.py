"""`pytest --slowest 25`: the tests and files that cost most, in seconds of CPU, of started processes too.

CPU seconds, because on a busy machine the others tell of the machine.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

_spent: Counter[str] = Counter()


def pytest_addoption(parser):
    parser.addoption(
        "--slowest", type=int, default=0, metavar="N", help="print the N dearest tests and files"
    )


def _cpu() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """With what is set up and torn down around the test."""
    before = _cpu()
    result = yield
    item.config.stash.setdefault(_SPENT, {})[item.nodeid] = _cpu() - before
    return result


_SPENT = pytest.StashKey[dict[str, float]]()


def pytest_sessionfinish(session):
    """A worker sends what it measured to the process that prints."""
    spent = session.config.stash.get(_SPENT, {})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["spent"] = spent
    else:
        _spent.update(spent)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _spent.update(getattr(node, "workeroutput", {}).get("spent", {}))


def pytest_terminal_summary(terminalreporter, config):
    if not (most := config.getoption("--slowest")):
        return
    files = Counter()
    for test, seconds in _spent.items():
        files[test.partition("::")[0]] += seconds
    for what, found in (("tests", _spent), ("files", files)):
        terminalreporter.section(f"the {most} slowest {what}: CPU s of {found.total():.0f}")
        for name, seconds in found.most_common(most):
            terminalreporter.write_line(f"{seconds:8.2f}  {name}")
