"""The shape of the package in numbers: `python -m tests.support.house`.

Files a folder, import circles, lengths of functions, how many are called by one word, and how many lines are
comments. Read from the sources as they are.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path
from statistics import median

from tests.test_layering import ROOT, circles, modules

FOR_TOOLS = re.compile(r"#\s*(noqa|type:|pyright:|isort:|fmt:|pragma)")


def functions() -> list[tuple[str, int]]:
    """(name, lines without the docstring) of every function and method that is not a protocol of Python's."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                text = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1 - (text.count("\n") + 1 if text else 0)
                found.append((node.name, lines))
    return found


def comment_share(root: Path = ROOT) -> float:
    """Comments that tell a reader something, not a tool, a line each, of all lines that are not blank."""
    comments = lines = 0
    for path in root.rglob("*.py"):
        text = path.read_text()
        lines += sum(bool(line.strip()) for line in text.splitlines())
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            comments += token.type == tokenize.COMMENT and not FOR_TOOLS.match(token.string)
    return comments / lines


def measure() -> dict[str, object]:
    """The numbers, by what they are of."""
    files = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    folders = Counter(path.parent for path in files)
    names, lines = zip(*functions(), strict=True)
    return {
        "files": len(files),
        "folders": len(folders),
        "most files in a folder": max(folders.values()),
        "files in an import circle": sum(map(len, circles(modules(ROOT)))),
        "longest file, lines": max(len(path.read_text().splitlines()) for path in files),
        "functions": len(names),
        "median function, lines": median(lines),
        "90 % of functions below, lines": sorted(lines)[int(0.9 * len(lines))],
        "called by one word": sum("_" not in name.strip("_") for name in names) / len(names),
        "lines with a comment": comment_share(),
    }


if __name__ == "__main__":
    for what, number in measure().items():
        print(f"{what:32} {number:.1%}" if isinstance(number, float) else f"{what:32} {number}")
