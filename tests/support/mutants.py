"""Which small faults would the tests miss? `python -m tests.support.mutants kssm_mlx/metrics tests/metrics`.

A mutant is the package with one fault: a comparison, an operator, a number or a condition changed. Each of a
seeded sample is put into a copy of the tree, where the given tests run until one fails. The mutants that no
test notices are printed: each is a missing test, or no fault at all (a change that cannot matter).
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAIRS = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.And, ast.Or),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
]
SWAPS: dict[type, type] = {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
SWAPS |= dict(PAIRS) | {b: a for a, b in PAIRS}
# What messages say has no effect on what is computed.
SILENT = (ast.JoinedStr, ast.Raise)
# A mutant that makes the tests hang is noticed: by what they compute, which a busy machine does not change,
# and, of those that wait for what never comes, by the clock.
SECONDS, WAITED = 240, 3600


class Mutant(NamedTuple):
    path: Path
    line: int
    change: str
    source: str


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """The faults that one node can have."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            fault = copy.deepcopy(node)
            fault.ops[i] = SWAPS[type(op)]()
            yield fault
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        fault = copy.deepcopy(node)
        fault.op = SWAPS[type(node.op)]()
        yield fault
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.If):
        fault = copy.copy(node)
        fault.test = ast.Constant(False)
        yield fault


def children(node: ast.AST) -> Iterator[tuple[list | ast.AST, int | str, ast.AST]]:
    """(holder, place in it, node) of everything below a node that is computed when the program runs."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        places = enumerate(value) if isinstance(value, list) else [(name, value)]
        for place, child in places:
            if isinstance(child, ast.AST) and not isinstance(child, SILENT):
                yield (value if isinstance(value, list) else node), place, child
                yield from children(child)


def put(holder: list | ast.AST, place: int | str, node: ast.AST) -> None:
    if isinstance(holder, list):
        holder[place] = node
    else:
        setattr(holder, place, node)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file."""
    tree = ast.parse(path.read_text())
    for holder, place, node in list(children(tree)):
        for fault in changed(node):
            put(holder, place, fault)
            before, after = (ast.unparse(n.test if isinstance(n, ast.If) else n) for n in (node, fault))
            yield Mutant(path, node.lineno, f"{before}  ->  {after}", ast.unparse(tree))
            put(holder, place, node)


def sample(target: Path, number: int, seed: int, without: Sequence[str] = ()) -> tuple[list[Mutant], int]:
    """A sample of the mutants of a file, or a folder without some in it, in order, and how many there are."""
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    files = [path for path in files if not {*path.relative_to(target).parts} & {*without}]
    every = [mutant for path in files for mutant in mutants(path)]
    chosen = sorted(random.Random(seed).sample(range(len(every)), min(number, len(every))))
    return [every[i] for i in chosen], len(every)


def run_tests(copied: Path, tests: list[str], *flags: str) -> bool:
    """Whether the tests pass in a copy of the tree, in less than `SECONDS` of CPU. An exit code that is no
    verdict on tests ends it all.
    """
    pytest = ["-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:xdist"]
    command = [sys.executable, *flags, *pytest, *tests]
    # Options of whoever asks are not known to every tree, and an error would count as noticed.
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    limits = {"timeout": WAITED, "preexec_fn": limit_computing}
    try:
        code = subprocess.run(command, cwd=copied, capture_output=True, env=env, **limits).returncode
    except subprocess.TimeoutExpired:
        return False
    if code not in (0, 1, 2, 4, -signal.SIGXCPU):  # 2 and 4: the mutant cannot even be imported
        raise SystemExit(f"pytest ended with exit code {code}: is {' '.join(tests)} what you meant?")
    return code == 0


def limit_computing() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))


def mirrored_first(mutant: Mutant, tests: list[str], copied: Path) -> list[str]:
    """The tests, with the file that is named after the mutated one in front: it sees most, and soonest."""
    name = f"test_{mutant.path.stem}.py"
    own = [str(p.relative_to(copied)) for t in tests for p in sorted((copied / t).rglob(name))]
    return [*own, *tests]


def find_survivors(chosen: list[Mutant], tests: list[str], copied: Path, root: Path) -> Iterator[Mutant]:
    """The mutants of files under `root` that the tests do not notice in the copy of it."""
    for mutant in chosen:
        place = copied / mutant.path.relative_to(root)
        original = place.read_text()
        place.write_text(mutant.source)
        # -B: two mutants of one size and second would share their bytecode.
        if run_tests(copied, mirrored_first(mutant, tests, copied), "-B"):
            yield mutant
        place.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="a file or folder of the package")
    parser.add_argument("tests", nargs="+", help="the test files or folders that should notice")
    parser.add_argument("--number", type=int, default=50, help="how many mutants are tried")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--without", action="append", default=[], help="a folder in it that is left out")
    args = parser.parse_args()
    chosen, total = sample((ROOT / args.target).resolve(), args.number, args.seed, args.without)
    with tempfile.TemporaryDirectory(prefix="kssm-mlx-mutants-") as folder:
        copied = Path(folder) / "tree"
        left_out = shutil.ignore_patterns(".git", ".venv", "runs", ".pytest_cache", "__pycache__")
        shutil.copytree(ROOT, copied, ignore=left_out)
        # `runs` above is where training writes; the package and the tests have folders of that name.
        for name in ("kssm_mlx/runs", "tests/runs"):
            shutil.copytree(ROOT / name, copied / name, dirs_exist_ok=True)
        if not run_tests(copied, args.tests):
            raise SystemExit("the tests fail without any mutant; mend them first")
        survivors = 0
        for mutant in find_survivors(chosen, args.tests, copied, ROOT):
            survivors += 1
            print(f"{mutant.path.relative_to(ROOT)}:{mutant.line}: {mutant.change}", flush=True)
    killed = len(chosen) - survivors
    print(f"{args.target}: {len(chosen)} of {total} mutants, {killed} killed, {survivors} alive")


if __name__ == "__main__":
    main()
