"""`pytest --one-of-each`: every test function once, with the parameters whose id comes first."""

from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption("--one-of-each", action="store_true", help="every test function once")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--one-of-each"):
        return
    chosen = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        chosen.setdefault(item.nodeid.partition("[")[0], item)
    kept = {id(item) for item in chosen.values()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
