"""Runs that learn an initial state or a prompt: bits of the base model, exact resume, the file, refusals."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import kssm_mlx
from kssm_mlx.cli import app
from kssm_mlx.data import tokens
from kssm_mlx.data.batches import evaluation_windows, random_batch
from kssm_mlx.data.tokens import TokenSplit
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.generation import generate
from kssm_mlx.models.base import flatten
from kssm_mlx.models.state_tuning import StateTuned
from kssm_mlx.runner.convert import export
from kssm_mlx.runner.evaluate import evaluate
from kssm_mlx.runner.load import begin_with_state, load
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.training.recipe import parse
from tests.support.exported import exported, tiny
from tests.support.pretrained_runs import TOKENS, latest, parameters, passed, train

pytestmark = pytest.mark.usefixtures("quick")


STORED = {"state": "initial_state", "prompt": "prompt"}


@pytest.fixture(params=STORED)
def kind(request):
    return request.param


@pytest.fixture
def run(base_model, tmp_path, kind):
    folder = tmp_path / "run"
    train(base_model, folder, train=kind)
    return folder


def test_a_run_learns_a_state_and_no_weight(base_model, run, kind):
    stored = mx.load(str(latest(run) / f"{STORED[kind]}.safetensors"))
    assert stored and all(name.startswith(("initial.", "prompt")) for name in stored)
    model, before = load(run).model, parameters(open_model(base_model).model)
    after = {n.removeprefix("host."): a for n, a in parameters(model).items() if n not in stored}
    assert after.keys() == before.keys() and all(mx.array_equal(after[n], before[n]) for n in before)
    assert mx.abs(model(TOKENS) - open_model(base_model).model(TOKENS)).max() > 1e-3
    assert evaluate(load(run), run, tokens=256)["nats_per_token"] > 0


def test_a_resumed_run_is_the_unbroken_one(base_model, run, kind, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    unbroken = mx.load(str(latest(run) / f"{STORED[kind]}.safetensors"))
    shutil.rmtree(latest(again))
    result, _ = train(base_model, again, train=kind, resume=True)
    assert (result.started_at, result.step) == (12, 24)
    other = mx.load(str(latest(again) / f"{STORED[kind]}.safetensors"))
    assert all(mx.array_equal(unbroken[name], other[name]) for name in unbroken)


def test_the_file_begins_its_base_model_as_the_run(base_model, run, tmp_path):
    file = export(run, tmp_path / "state.safetensors", format="state")
    assert file.stat().st_size < 0.5 * (base_model / "model.safetensors").stat().st_size
    base, own = load(base_model), load(run)
    begun = begin_with_state(base, file)
    assert begun.digest == own.digest != base.digest
    assert mx.array_equal(begun.model(TOKENS), own.model(TOKENS))
    texts = [generate(t, ["ada ", "b"], max_tokens=8) for t in (own, begun)]
    assert [c.ids for c in texts[0]] == [c.ids for c in texts[1]]
    command = ["generate", str(base_model), "ada ", "--max-tokens", "8", "--state-in", str(file), "--json"]
    said = CliRunner().invoke(app, command)
    assert json.loads(said.stdout.splitlines()[-1])["ids"] == list(texts[0][0].ids)
    with pytest.raises(ConfigError, match="begins with a learned state of its own"):
        begin_with_state(own, file)


def test_a_state_of_another_model_and_a_changed_one_are_refused(run, base_model, tmp_path):
    file = export(run, tmp_path / "state.safetensors", format="state")
    other = exported(tiny("mamba", hidden_size=16), tmp_path / "other")
    passed(other)
    with pytest.raises(CheckpointError, match=r"is for weights .*, this model has .*; give it the model"):
        begin_with_state(load(other), file)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="was changed after it was written, or is damaged"):
        begin_with_state(load(base_model), file)


def test_other_tools_have_no_place_for_it(run, base_model, tmp_path):
    with pytest.raises(ConfigError, match="--format state writes it for kssm generate --state-in"):
        export(run, tmp_path / "folder")
    with pytest.raises(ConfigError, match="has no learned state"):
        export(base_model, tmp_path / "file", format="state")
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ConfigError, match="is in use"):
        export(run, tmp_path / "there", format="state")


def test_what_does_not_go_with_it_is_refused(base_model, kind):
    model = {"base": str(base_model), "train": kind}
    with pytest.raises(ConfigError, match=r"train.hand_off carries a state from row to row"):
        parse({"model": model, "train": {"hand_off": True}})
    with pytest.raises(ConfigError, match=f'train = "{kind}" learns what the base model begins with'):
        parse({"model": {**model, "graft": {"core": "hook"}}})


def test_rows_are_the_beginnings_of_documents():
    split = TokenSplit("train", np.arange(10, 31).astype(np.uint16), np.array([0, 3, 4, 12]))
    cut = split.cut_at_documents(5)
    assert cut.row == 6 and cut.starts.tolist() == [0, 6, 12]  # a document of one token has no target
    assert cut.ids.reshape(3, 6)[:, 0].tolist() == [10, 14, 22]
    assert cut.scored.reshape(3, 6).tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6, [1] * 6]
    (batch,) = evaluation_windows(cut, 100, 5, 8)
    assert batch.resets is None
    assert batch.tokens[0].tolist() == [10, 11, 12, -15, -16, -17]  # what comes behind is read, not scored
    assert random_batch(cut, 0, 0, 2, 5).tokens.shape == (2, 6)
    one = TokenSplit("train", split.ids, np.array([0]))
    assert one.cut_at_documents(5) is one and cut.cut_at_documents(5) is cut


def test_documents_are_cut_some_at_a_time(monkeypatch):
    """Few at once are the same rows, and many take little more memory than the rows themselves."""
    starts = np.arange(0, 400_000, 40)
    split = TokenSplit("train", np.arange(400_000).astype(np.uint16), starts)
    tracemalloc.start()
    cut = split.cut_at_documents(63)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cut.scored is not None and peak < 2.5 * (cut.ids.nbytes + cut.scored.nbytes)
    monkeypatch.setattr(tokens, "TOGETHER", 3)
    few = split.cut_at_documents(63)
    assert (few.ids[:] == cut.ids[:]).all() and (few.scored == cut.scored).all()


def test_a_text_of_documents_is_read_by_their_beginnings(base_model, kind, tmp_path):
    """Through training, checks, evaluation: sixteen themes, many documents."""
    recipe = parse(
        {
            "data": {"source": "themes:seed=1,samples=60", "tokenizer": "bytes"},
            "model": {"base": str(base_model), "train": kind},
            "train": {"steps": 4, "batch_size": 4, "context": 16, "warmup": 0},
            "eval": {"every": 4, "tokens": 256, "sample_tokens": 4},
            "save": {"every": 4},
        }
    )
    reasons = dict.fromkeys(("C17", "C18", "C19"), "a few steps teach nothing")
    quiet = Console(file=io.StringIO())
    result = kssm_mlx.train(recipe, tmp_path / "run", waivers=reasons, console=quiet)
    assert result.step == 4 and result.evaluation["tokens"] <= 256
    model = load(tmp_path / "run").model
    assert isinstance(model, StateTuned) and flatten(model.trainable_parameters())
    assert evaluate(load(tmp_path / "run"), tmp_path / "run")["tokens"] == result.evaluation["tokens"]
