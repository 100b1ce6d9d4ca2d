"""The package as a stranger gets it: quick to import, five names, a wheel with everything in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kssm_mlx
from kssm_mlx.errors import KssmError

ROOT = Path(__file__).parents[1]
# Each of these costs tenths of a second to seconds; a command imports what it needs when it runs.
HEAVY = {
    *("mlx", "mlx_lm", "transformers", "scipy", "matplotlib", "numpy", "pydantic", "tokenizers"),
    *("huggingface_hub", "datasets", "torch"),
}


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running `code`."""
    tell = "import atexit, json, sys\natexit.register(lambda: sys.stderr.write(json.dumps([*sys.modules])))\n"
    run = subprocess.run(
        [sys.executable, "-c", tell + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(run.stderr.splitlines()[-1])}


def test_import_loads_nothing_heavy():
    assert imported_by("import kssm_mlx") & HEAVY == set()


# typer itself needs pydantic where a command has typed arguments.
@pytest.mark.parametrize(
    "arguments, needed", [(["--help"], set()), (["--version"], set()), (["train", "--help"], {"pydantic"})]
)
def test_help_loads_nothing_heavy(arguments, needed):
    code = f"import sys; sys.argv = ['kssm', *{arguments}]; from kssm_mlx.cli import app; app()"
    assert imported_by(code) & HEAVY <= needed


def test_the_heavy_are_seen():
    assert "numpy" in imported_by("import numpy")


def test_public_names_are_functions():
    assert sorted(kssm_mlx.__all__) == ["build", "generate", "load", "train", "verify"]
    assert set(kssm_mlx.__all__) <= set(dir(kssm_mlx))
    assert all(callable(getattr(kssm_mlx, name)) for name in kssm_mlx.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        kssm_mlx.trian  # noqa: B018


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == kssm_mlx.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("kssm_mlx-*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_recipes_sources_and_licence(wheel):
    names = set(wheel.namelist())
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.toml")}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "kssm_mlx").rglob("*.py")}
    assert "recipes/default.toml" in recipes
    assert {f"kssm_mlx/{r}" for r in recipes} | sources <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_wheel_has_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"kssm_mlx", f"kssm_mlx-{kssm_mlx.__version__}.dist-info"}


def test_a_recipe_is_found_outside_the_clone(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from kssm_mlx.training import recipe; print(recipe.load('default').model.family, recipe.__file__)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.stdout.startswith("kssm "), run.stderr
    assert str(tmp_path) in run.stdout


def test_types_are_promised(wheel):
    assert "kssm_mlx/py.typed" in wheel.namelist()


def test_every_extra_is_used():
    """An extra that nothing imports installs something for nothing, as `eval` once did."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = "".join(path.read_text("utf-8") for path in (ROOT / "kssm_mlx").rglob("*.py"))
    own = {name: wanted for name, wanted in extras.items() if name not in ("test", "parity")}
    assert own
    wants = (want.partition(">=")[0] for wanted in own.values() for want in wanted)
    for package in (want.replace("-", "_") for want in wants):
        ways = (f"import {package}", f"from {package}", f'import_module("{package}")')
        assert any(way in code for way in ways), package


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: kssm_mlx.build("kssm"), "build takes a configuration, got str; make one"),
        (lambda: kssm_mlx.build({"model_type": "kssm"}), "build takes a configuration, got dict; make one"),
        (lambda: kssm_mlx.generate("a model", "x"), "generate takes a model, a tokenizer and prompts, or"),
    ],
)
def test_what_a_public_function_cannot_use_is_one_line(call, says):
    with pytest.raises(KssmError, match=says):
        call()
