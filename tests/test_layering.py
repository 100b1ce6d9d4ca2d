"""The arrows between the folders point down. Reads the imports of every file, also those inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "kssm_mlx"

# Each layer may import the layers named beside it, itself, and the foundation.
FOUNDATION = {"__init__", "errors", "files", "parsing", "digest", "environment", "runs", "_blas", "_memory"}
MAY_IMPORT = {
    "oscillators": set(),
    "ops": {"oscillators"},
    "models": {"ops", "oscillators"},
    "metrics": {"oscillators"},
    "data": set(),
    "weights": {"models"},
    "generation": {"models", "data"},
    "training": {"metrics", "data", "models", "ops", "oscillators"},
    "checks": {"models", "ops", "weights", "data", "metrics", "training", "generation", "oscillators"},
}
MAY_IMPORT["runner"] = {*MAY_IMPORT}
MAY_IMPORT["experiments"] = {*MAY_IMPORT}
MAY_IMPORT["reports"] = {"metrics", "oscillators"}
MAY_IMPORT["integrations"] = {"models", "generation", "weights", "data"}
MAY_IMPORT["bench"] = {"ops", "oscillators", "models", "training", "checks", "reports", "integrations"}
MAY_IMPORT["cli"] = {*MAY_IMPORT}


def layer(module: str) -> str:
    """The folder or file right under the package: kssm_mlx.data.batches -> data, kssm_mlx -> __init__."""
    return [*module.split("."), "__init__"][1]


def imports(source: str, package: str) -> set[str]:
    """Absolute names of the modules that `source`, a module of `package`, imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from kssm_mlx import data` names the folder in its second half.
            found |= {f"{base}.{a.name}" for a in node.names} if base == "kssm_mlx" else {base}
    return found


def violations(path: Path, root: Path = ROOT) -> list[str]:
    """What the file at `path` may not do, one sentence each."""
    parts = ("kssm_mlx", *path.relative_to(root).with_suffix("").parts)
    here, where = layer(".".join(parts)), path.relative_to(root)
    text = path.read_text()
    wrong = [f"{where} reads the shared folder"] if "../shared" in text else []
    for name in sorted(imports(text, ".".join(parts[:-1]))):
        package, target = name.split(".")[0], layer(name)
        if package == "mlx_lm" and where != Path("integrations/mlx_lm.py"):
            wrong.append(f"{where} imports mlx_lm; only integrations/mlx_lm.py may")
        if package == "kssm_mlx" and not allowed(here, target):
            wrong.append(f"{where} imports {name}; {here} may not import {target}")
    return wrong


def allowed(here: str, target: str) -> bool:
    """Names of the package itself (`__version__`) and lazily offered functions count as foundation."""
    if target not in MAY_IMPORT:
        return target in FOUNDATION or target == "__version__"
    return here == target or target in MAY_IMPORT.get(here, set())


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    assert violations(path) == []


def test_every_layer_is_known():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    files = {p.stem for p in ROOT.glob("*.py")}
    assert folders | files <= MAY_IMPORT.keys() | FOUNDATION


@pytest.mark.parametrize(
    "file, line, complaint",
    [
        ("oscillators/x.py", "from kssm_mlx.models import base", "oscillators may not import models"),
        ("ops/x.py", "def f():\n    import kssm_mlx.training.step", "ops may not import training"),
        ("training/x.py", "from kssm_mlx import experiments", "training may not import experiments"),
        ("runner/x.py", "from kssm_mlx.experiments import clamps", "runner may not import experiments"),
        ("reports/x.py", "from ..models.kssm import KSSM", "reports may not import models"),
        ("experiments/x.py", "from kssm_mlx.cli import app", "experiments may not import cli"),
        ("data/x.py", "import mlx_lm.utils", "only integrations/mlx_lm.py may"),
        ("errors.py", "import kssm_mlx.data.tokens", "errors may not import data"),
        ("data/x.py", "TEXT = '../shared/data'", "reads the shared folder"),
        ("cli/x.py", "import kssm_mlx.surprise", "cli may not import surprise"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path, file, line, complaint):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert [complaint in v for v in violations(path, tmp_path)] == [True]


def test_right_imports_pass(tmp_path):
    path = tmp_path / "integrations" / "mlx_lm.py"
    path.parent.mkdir()
    path.write_text("import mlx_lm\nfrom kssm_mlx.models import base\nfrom kssm_mlx import __version__\n")
    assert violations(path, tmp_path) == []
