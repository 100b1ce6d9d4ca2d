"""The suite's own guards fire: on a test that prints, on a switch left turned, on what others share."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import compiling as switch
from tests.support import longest_first
from tests.support.compiling import compiles, compiling
from tests.support.longest_first import LONGEST

pytest_plugins = ["pytester"]
TESTS = Path(__file__).parent


@pytest.fixture
def run(pytester):
    """run(source, plugins...) -> what pytest says of a file of tests, with some of our plugins."""

    def go(source: str, *plugins: str, options: tuple[str, ...] = ()):
        pytester.makepyfile(source)
        chosen = [f"-ptests.support.{plugin}" for plugin in plugins]
        return pytester.runpytest_inprocess(
            "-pno:randomly", "-pno:xdist", "-pno:cacheprovider", *chosen, *options
        )

    return go


@pytest.mark.parametrize(
    "line",
    [
        "print('hello')",
        "import sys; sys.stderr.write('hello')",
        "import os; os.write(2, b'hello')",
        "import subprocess; subprocess.run(['echo', 'hello'])",
    ],
)
def test_a_test_that_prints_is_told(run, capfd, line):
    result = run(f"def test_it():\n    {line}", "quiet")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*test_it prints to the terminal:*")
    capfd.readouterr()


def test_what_a_test_reads_or_is_marked_for_is_not_printed(run, capfd):
    run(
        """
        import pytest

        def test_it(capfd):
            print("hello")
            assert capfd.readouterr().out == "hello\\n"

        @pytest.mark.prints
        def test_marked():
            print("hello")
        """,
        "quiet",
        options=("-Wignore::pytest.PytestUnknownMarkWarning",),
    ).assert_outcomes(passed=2)
    capfd.readouterr()


def test_a_test_that_leaves_mlx_uncompiled_is_told(run, capfd, monkeypatch):
    monkeypatch.setattr(switch, "_settings", [True])
    result = run(
        """
        from tests.support import compiling

        def test_it():
            compiling._settings.append(False)
        """,
        "repeatable",
    )
    capfd.readouterr()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*leaves MLX uncompiled for the tests after it*")


def test_only_one_place_turns_the_switch():
    """A stack, so that nobody's fixture turns compiling on inside somebody else's."""
    turning = re.compile(r"mx\.(?:dis|en)able_compile\(")
    found = {str(p.relative_to(TESTS)) for p in TESTS.rglob("*.py") if turning.search(p.read_text())}
    assert found == {"support/compiling.py"}


def test_settings_are_a_stack():
    with compiling(False):
        with compiling(True):
            assert compiles()
        assert not compiles()
    assert compiles()


def test_a_shared_fixture_is_uncompiled_and_draws_the_same_numbers_whoever_asks_first(run, capfd):
    result = run(
        """
        import mlx.core as mx
        import pytest
        from tests.support.compiling import compiles

        @pytest.fixture(scope="module")
        def shared():
            return compiles(), mx.random.uniform().item()

        def test_first(request):
            own = mx.random.uniform().item()
            assert request.getfixturevalue("shared") == (False, own)
            assert compiles()

        def test_second(shared):
            assert shared == (False, mx.random.uniform().item())
        """,
        "repeatable",
    )
    capfd.readouterr()
    result.assert_outcomes(passed=2)


def test_one_of_each_keeps_the_first_parameters_of_every_function(run, capfd):
    result = run(
        """
        import pytest

        @pytest.mark.parametrize("x", "cba")
        def test_some(x):
            assert x == "a"

        def test_other():
            pass
        """,
        "one_of_each",
        options=("--one-of-each",),
    )
    capfd.readouterr()
    result.assert_outcomes(passed=2, deselected=2)


def test_the_dearest_tests_are_printed(run, capfd):
    result = run(
        """
        def test_dear():
            sum(range(3_000_000))

        def test_cheap():
            pass
        """,
        "slowest",
        options=("--slowest=1",),
    )
    capfd.readouterr()
    result.stdout.fnmatch_lines(["*slowest tests: CPU s*", "*test_dear*", "*slowest files: CPU s*"])


def test_the_longest_files_run_first_and_are_there():
    made = [SimpleNamespace(nodeid=f"{file}::test_it") for file in ("tests/b.py", *LONGEST, "tests/a.py")]
    order = [item.nodeid.partition("::")[0] for item in made]
    longest_first.pytest_collection_modifyitems(made)
    found = [item.nodeid.partition("::")[0] for item in made]
    assert found == [*order[1:-1], "tests/b.py", "tests/a.py"]
    assert all((TESTS.parent / file).is_file() for file in LONGEST)
