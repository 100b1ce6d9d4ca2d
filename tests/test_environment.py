"""Facts are plain JSON and true of this process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def facts() -> dict:
    return environment.facts()


def test_facts_survive_json(facts):
    assert json.loads(json.dumps(facts)) == facts


def test_facts_are_this_process(facts):
    assert facts["packages"]["mlx"] == mx.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["python"].split(".") == [str(n) for n in sys.version_info[:3]]
    assert facts["device"]["type"] == mx.default_device().type.name
    assert facts["open_files"]["soft"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts["tf32"] is (os.environ["MLX_ENABLE_TF32"] != "0")
    assert facts["switches"]["MLX_ENABLE_TF32"] == os.environ["MLX_ENABLE_TF32"]


def test_reading_the_cache_limit_leaves_it():
    before = mx.set_cache_limit(12345678)
    assert environment.cache_limit() == 12345678
    assert environment.cache_limit() == 12345678
    mx.set_cache_limit(before)


def test_commit_of_a_clone_and_of_a_copy(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True
        )

    source = tmp_path / "kssm_mlx" / "environment.py"
    source.parent.mkdir()
    source.write_text("one")
    monkeypatch.setattr(environment, "__file__", str(source))
    assert environment.commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = environment.commit()
    assert len(clean) == 40
    source.write_text("two")
    assert environment.commit() == f"{clean}+changes"


@pytest.mark.parametrize("switch, compiles", [({}, True), ({"MLX_DISABLE_COMPILE": "0"}, False)])
def test_compiles_tells_the_truth(switch, compiles, tmp_path):
    code = "from kssm_mlx import environment; print(environment.compiles())"
    env = {**os.environ, "TMPDIR": str(tmp_path), **switch}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == str(compiles), run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="macOS compiles with Metal")
def test_compiles_sees_a_missing_compiler(tmp_path):
    (tmp_path / "sh").symlink_to("/bin/sh")
    code = "from kssm_mlx import environment; print(environment.compiles())"
    env = {**os.environ, "TMPDIR": str(tmp_path), "PATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
