"""Whether `tests/x.py::test_y` names a test, read from the file without importing it."""

import ast
from functools import cache

from tests.support.pages import ROOT


def names_a_test(node: str) -> bool:
    """A file alone counts where it holds any test."""
    path, _, name = node.partition("::")
    found = _tests(path) if (ROOT / path).is_file() else set()
    return name.partition("[")[0] in found if name else bool(found)


@cache
def _tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test")}
