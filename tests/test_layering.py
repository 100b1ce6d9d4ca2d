"""The arrows between the folders point down. Reads the imports of every file, also those inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "kssm_mlx"
INTEGRATION, MODELS_OF_MLX_LM = Path("integrations/mlx_lm.py"), Path("models/mlx_lm")

# Each layer may import the layers named beside it, itself, and the foundation.
FOUNDATION = {
    "__init__",
    "errors",
    "files",
    "parsing",
    "terminal",
    "digest",
    "environment",
    "runs",
    "shipped",
    "_blas",
    "_caches",
    "_memory",
}
MAY_IMPORT = {
    "oscillators": set(),
    "ops": {"oscillators"},
    "models": {"ops", "oscillators"},
    "data": set(),
    "metrics": {"data", "oscillators"},
    "weights": {"models"},
    "generation": {"models", "data", "weights"},
    "training": {"metrics", "data", "models", "ops", "oscillators"},
    "checks": {"models", "ops", "weights", "data", "metrics", "training", "generation", "oscillators"},
}
MAY_IMPORT["runner"] = {*MAY_IMPORT}
MAY_IMPORT["experiments"] = {*MAY_IMPORT}
MAY_IMPORT["experiments"] |= {"runner", "reports"}
MAY_IMPORT["reports"] = {"metrics", "oscillators"}
MAY_IMPORT["integrations"] = {"models", "generation", "weights", "data"}
MAY_IMPORT["bench"] = {"ops", "oscillators", "models", "training", "checks", "reports", "integrations"}
MAY_IMPORT["cli"] = {*MAY_IMPORT}
MAY_IMPORT["__main__"] = {"cli"}


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
        if package == "mlx_lm" and not (where == INTEGRATION or where.is_relative_to(MODELS_OF_MLX_LM)):
            wrong.append(f"{where} imports mlx_lm; only {INTEGRATION} and {MODELS_OF_MLX_LM} may")
        if package == "kssm_mlx" and not allowed(here, target):
            wrong.append(f"{where} imports {name}; {here} may not import {target}")
    return wrong


def allowed(here: str, target: str) -> bool:
    """Names of the package itself (`__version__`) and lazily offered functions count as foundation."""
    if target not in MAY_IMPORT:
        return target in FOUNDATION or target == "__version__"
    return here == target or target in MAY_IMPORT.get(here, set())


def test_arrows_point_down():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 200
    assert [wrong for path in files for wrong in violations(path)] == []


def modules(root: Path) -> dict[str, set[str]]:
    """Every module below `root` -> the modules of the package that it imports, lazily or not."""
    files = {
        ".".join(("kssm_mlx", *p.relative_to(root).with_suffix("").parts)): p for p in root.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {a.name for a in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{a.name}" for a in node.names}
                # `from package import module` asks for the module; the package only forwards.
                found[name] |= (named & files.keys()) or ({node.module} & files.keys())
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by whatever way."""

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reachable = {name: reach(name) for name in imports}
    groups = {frozenset(b for b in reachable[a] if a in reachable[b]) for a in imports if a in reachable[a]}
    return sorted(sorted(group) for group in groups)


def test_no_import_goes_round_in_a_circle():
    assert circles(modules(ROOT)) == []


def test_a_circle_is_caught_also_one_that_is_lazy(tmp_path):
    (tmp_path / "a.py").write_text("from kssm_mlx import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from kssm_mlx.c import x\n")
    (tmp_path / "c.py").write_text("import kssm_mlx.a\n")
    (tmp_path / "d.py").write_text("import kssm_mlx.a\n")
    assert circles(modules(tmp_path)) == [["kssm_mlx.a", "kssm_mlx.b", "kssm_mlx.c"]]


def shadowed(package: Path, root: Path = ROOT) -> list[str]:
    """Modules that a package's __init__ hides behind another of the same name, until they are imported."""
    here = ".".join([root.name, *package.relative_to(root).parts])
    found = []
    for node in ast.walk(ast.parse((package / "__init__.py").read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (package / f"{node.name}.py").is_file():
            found.append(f"{here}: {node.name}")
        for name in getattr(node, "names", ()):
            bound = name.asname or name.name  # a command may be called as its module is
            own = getattr(node, "module", None) in (here, f"{here}.{bound}")
            if isinstance(node, ast.ImportFrom) and not own and (package / f"{bound}.py").is_file():
                found.append(f"{here}: {bound}")
    return found


def test_no_package_hides_a_module_behind_another():
    """`from kssm_mlx.models import mamba2` gave one module or another, by what was imported before."""
    packages = [path.parent for path in ROOT.rglob("__init__.py")]
    assert [name for package in packages for name in shadowed(package)] == []


def test_a_hidden_module_is_caught(tmp_path):
    (tmp_path / "__init__.py").write_text("from elsewhere import mamba\nfrom elsewhere import other\n")
    (tmp_path / "mamba.py").write_text("")
    assert shadowed(tmp_path, tmp_path) == [f"{tmp_path.name}: mamba"]
    (tmp_path / "__init__.py").write_text("def mamba():\n    pass\n")
    assert shadowed(tmp_path, tmp_path) == [f"{tmp_path.name}: mamba"]


def test_no_folder_has_more_than_20_files_and_none_only_forwards():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    crowded = {str(f.relative_to(ROOT)): n for f in folders if (n := len([*f.glob("*.py")])) > 20}
    assert crowded == {}
    forwarding = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py" and all(map(is_forwarding, ast.parse(path.read_text()).body))
    ]
    assert forwarding == []


def is_forwarding(node: ast.stmt) -> bool:
    """An import, a docstring, or a list of names."""
    named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return named or docstring or isinstance(node, ast.Import | ast.ImportFrom)


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
        ("data/x.py", "import mlx_lm.utils", "only integrations/mlx_lm.py and models/mlx_lm may"),
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
