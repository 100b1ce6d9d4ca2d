"""Every script of examples/ runs, each in a process of its own, and prints what its first lines say."""

import subprocess
import sys

import pytest

from tests.support.pages import ROOT

SAID = {
    "train_and_generate.py": "nats/token",
    "own_check.py": "fail",
    "clamp.py": "R held at 0.9: 0.900 in the trace",
    "oscillators.py": "K 4.0   R 0.8",
}
ARGUMENTS = {"train_and_generate.py": ["run", "--smoke"]}


def test_no_example_is_left_out():
    assert SAID.keys() == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", SAID)
def test_it_runs(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / name), *ARGUMENTS.get(name, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAID[name] in done.stdout
