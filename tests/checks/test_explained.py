"""`kssm verify --explain`: whatever id the tool prints, it can say what is measured and why."""

import re
from pathlib import Path

import pytest

import kssm_mlx
from kssm_mlx.checks import host, kernels
from kssm_mlx.checks.base import REGISTRY, Context
from kssm_mlx.checks.definitions import definition, definitions
from kssm_mlx.checks.pretrained import TITLES
from kssm_mlx.checks.suites import run_suite
from kssm_mlx.cli.verify import verify
from kssm_mlx.weights import findings
from tests.fakes import TinyRecurrent

PARTS = ("definition", "threshold", "caught", "sabotage")
NAMED = re.compile(r'\b(?:Check|verdict|banded|_check|_judge|_verdict)\(\s*"([A-Z]+\d+)"')


def in_the_code() -> set[str]:
    """Every id that a verdict is made with, as written in the package."""
    files = Path(kssm_mlx.__file__).parent.rglob("*.py")
    return {id for file in files for id in NAMED.findall(file.read_text("utf-8"))} - {"MY1"}


def test_every_id_that_can_be_printed_has_a_definition():
    printed = {*REGISTRY, "W0", *findings.CHECKS, *TITLES, *host.CHECKS, *kernels.titles()}
    assert len(in_the_code()) > 50
    assert printed | in_the_code() == definitions().keys()


def test_every_definition_is_explained_on_the_screen(capsys):
    """In its four parts, under the id in capitals or not."""
    for id, entry in definitions().items():
        verify(explain=id.lower())
        heading, *parts = capsys.readouterr().out.splitlines()
        assert heading == f"{id} {entry.title} (level {entry.level}; {entry.source})"
        assert tuple(part.partition(": ")[0] for part in parts[:4]) == PARTS, id
        assert all(part.partition(": ")[2] for part in parts) and entry.title and entry.source, id
        assert not entry.explanation["definition"].startswith(id)


@pytest.mark.parametrize("only", [["c1", " C7"], ["C1 ", "c7 "]])
def test_ids_may_be_in_small_letters_and_after_spaces(only):
    model = TinyRecurrent()
    assert [c.id for c in run_suite(Context(model, model.args), only)] == ["C1", "C7"]
    assert definition(" c20 ").id == "C20"
