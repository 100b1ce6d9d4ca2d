"""docs/api.md from the code: public names with one line each; run as a module, it writes the page.

The page is read as it is in the repository; the site puts the whole of each name below its table
(docs/_site/hooks.py).
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from kssm_mlx import files
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "api.md"
HEAD = """# Python

Made by `python -m tests.docs.api` from the code. Five public names, which `kssm_mlx` has too and imports
when they are first used, and the parts that a script of one's own needs, each from the module above its
table.

```python
import kssm_mlx as k

run = k.load("runs/first")  # a run folder, files of a model, or a name on the hub
text = k.generate(run, "The ", max_tokens=8)[0].text
```

`help(k.train)` prints all of it: every argument, shapes, units and what is raised.
"""
# Heading -> the module of each group of names, and the names.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "The public names": {
        "kssm_mlx.runner.load": ("load",),
        "kssm_mlx.models": ("build",),
        "kssm_mlx.runner.train": ("train",),
        "kssm_mlx.generation": ("generate",),
        "kssm_mlx.runner.verify": ("verify",),
    },
    "Text, token by token": {"kssm_mlx.generation": ("stream", "save_state", "load_state")},
    "Recipes": {"kssm_mlx.training.recipe": ("load", "override", "list_shipped")},
    "Models": {"kssm_mlx.models.base": ("Output", "Clamp", "Intervention", "LanguageModel")},
    "K-SSM": {"kssm_mlx.models.kssm": ("KSSMConfig", "KSSM")},
    "Recurrences": {
        "kssm_mlx.ops.mobius_scan": ("mobius_scan",),
        "kssm_mlx.ops.ball_scan": ("ball_scan",),
        "kssm_mlx.ops.ball_wells": ("ball_wells",),
    },
    "Oscillators": {
        "kssm_mlx.oscillators.ball": ("kick", "translate", "rotate", "step", "order_from_ball"),
        "kssm_mlx.oscillators.wells": ("energy", "fixed_points"),
    },
    "Checks": {"kssm_mlx.checks.core.registry": ("check", "verdict", "Check")},
    "Errors": {
        "kssm_mlx.errors": (
            *("KssmError", "ConfigError", "DataError", "CheckpointError", "WeightMismatch", "CheckFailed"),
            "Interrupted",
        )
    },
}


MOST_FIELDS, LONGEST_DEFAULT = 8, 12  # of a class; characters


def render() -> str:
    return HEAD + "".join(
        f"\n## {title}\n" + "".join(_table(module, names) for module, names in groups.items())
        for title, groups in SECTIONS.items()
    )


def _table(module: str, names: tuple[str, ...]) -> str:
    rows = "".join(_row(getattr(import_module(module), name), name) for name in names)
    return f"\nFrom `{module}`:\n\n| name | what it is |\n| --- | --- |\n{rows}"


def _row(value: Any, name: str) -> str:
    said = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    cells = (f"`{name}{_arguments(value)}`", said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _arguments(value: Any) -> str:
    """Names and defaults; of a class with many fields, of an interface and of an error nothing."""
    if inspect.isclass(value) and (issubclass(value, Exception) or not hasattr(value, "__match_args__")):
        return ""
    parameters = inspect.signature(value).parameters.values()
    if inspect.isclass(value) and len(parameters) > MOST_FIELDS:
        return ""
    return str(inspect.Signature([_plain(each) for each in parameters])).replace("=Ellipsis", "=...")


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its type, and with a long default cut."""
    plain = parameter.replace(annotation=parameter.empty)
    long = parameter.default is not parameter.empty and len(repr(parameter.default)) > LONGEST_DEFAULT
    return plain.replace(default=...) if long else plain


if __name__ == "__main__":
    files.replace(PAGE, render())
