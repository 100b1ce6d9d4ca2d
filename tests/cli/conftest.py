"""What stands in for the orchestration below the commands."""

import sys
from types import SimpleNamespace

import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.models.base import Trained
from tests.support.cli_fakes import DIGEST, a_check
from tests.support.fakes import TinyRecurrent


@pytest.fixture
def runs(monkeypatch):
    """The runner with a tiny model and a record of what the commands asked of it."""
    trained = Trained(TinyRecurrent(256), ByteTokenizer(), "runs/tiny", DIGEST)
    asked, checks = [], [a_check()]

    def note(name, answer):
        return lambda *args, **kwargs: (asked.append((name, args, kwargs)), answer)[1]

    fake = SimpleNamespace(
        load=lambda path, **_: trained,
        train=note("train", None),
        verify=note("verify", checks),
        asked=asked,
        checks=checks,
    )
    for module in ("load", "train", "verify"):
        monkeypatch.setitem(sys.modules, f"kssm_mlx.runner.{module}", fake)
    return fake
