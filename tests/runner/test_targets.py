"""What `kssm verify` can be pointed at: weights, a model of one's own, several runs."""

import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

import kssm_mlx
from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import REGISTRY, Context, Definition, NotMeasurable, run_checks, verdict
from kssm_mlx.checks.training import overfit
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Clamp, Intervention, flatten
from kssm_mlx.runner.own_model import Plain
from kssm_mlx.runner.targets import open_targets
from tests.support.cli_fakes import kssm
from tests.support.exported import exported, tiny
from tests.support.fakes import TinyRecurrent

pytestmark = pytest.mark.usefixtures("uncompiled")

OWN = """
    from types import SimpleNamespace

    import mlx.core as mx
    import mlx.nn as nn

    from kssm_mlx.models.base import Output

    class Model(nn.Module):
        '''Ids to logits, and nothing else.'''
        def __init__(self, seed):
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.embed.weight = mx.random.normal((16, 8), key=mx.random.key(seed))
            self.head = nn.Linear(8, 16)
        def __call__(self, tokens):
            return self.head(mx.cumsum(self.embed(tokens), axis=1) / 4)

    def build(seed):
        return Model(seed)

    class Foreign(Model):
        '''With names of the protocol that mean something else.'''
        no_decay, stochastic, args = ("embed.weight",), True, SimpleNamespace(vocab_size=16)
        def __init__(self, seed):
            super().__init__(seed)
            self.hidden = nn.Linear(8, 8)
        def forward(self, tokens):
            return self(tokens)

    class Bare(Model):
        '''The protocol, but no more of it than `forward`.'''
        args = SimpleNamespace(vocab_size=16)
        def forward(self, tokens, cache=None, intervention=None, *, resets=None, lengths=None):
            return Output(self(tokens), cache, {})

    def foreign(seed):
        return Foreign(seed)

    def bare():
        return Bare(0)

    def with_tokenizer():
        return Model(0), "a tokenizer"

    def loaded():
        from kssm_mlx.models.base import Trained
        return Trained(Model(0), None, "here", "d" * 64)

    def broken():
        raise RuntimeError("no weights here")

    def words():
        return "a model"

    class Pair(Model):
        def __call__(self, tokens):
            return super().__call__(tokens), None

    def pair():
        return Pair(0)

    size = 8
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own_NAME` in the working directory; gives its name."""
    name = f"own_{tmp_path.name.strip('_')[:40]}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


# --- a model of one's own -------------------------------------------------------------------------------


def test_a_model_that_only_makes_logits_is_checked_as_far_as_that_goes(own):
    found = {
        c.id: c for c in kssm_mlx.verify(model=f"{own}:build", only=["C1", "C2", "C3", "C5", "C6", "C7"])
    }
    assert [id for id, c in found.items() if c.verdict == "pass"] == ["C1", "C2", "C3", "C6", "C7"]
    assert (found["C5"].verdict, found["C5"].got) == ("not measurable", "the model has no make_cache()")
    assert {c.evidence for c in found.values()} == {"untrained"}


def test_what_it_returns_may_be_a_model_a_pair_or_what_load_gives(own):
    alone, pair, loaded = (
        open_targets([], f"{own}:{name}") for name in ("build", "with_tokenizer", "loaded")
    )
    assert isinstance(alone.model, Plain) and alone.model.args.vocab_size == 16
    assert pair.tokenizer == "a tokenizer" and not pair.trained
    assert loaded.trained and loaded.base_digest == "d" * 64


def test_a_builder_that_takes_a_seed_gives_checks_fresh_models(own):
    ctx = open_targets([], f"{own}:build")
    again, other = (flatten(ctx.builder(seed).parameters()) for seed in (0, 1))
    here = flatten(ctx.model.parameters())
    name = "model.embed.weight"
    assert mx.array_equal(here[name], again[name]) and not mx.array_equal(here[name], other[name])
    assert open_targets([], f"{own}:with_tokenizer").builder is None


@pytest.mark.parametrize(
    "spec, message",
    [
        ("own", "--model takes module:callable"),
        ("nowhere:build", "cannot import nowhere:build: ModuleNotFoundError"),
        ("{own}:missing", "cannot import .*AttributeError"),
        ("{own}:size", "is a int; expected a callable"),
        ("{own}:broken", "raised RuntimeError: no weights here"),
        ("{own}:words", "gave a str; expected an mlx.nn.Module"),
        ("{own}:pair", r"gave tuple for ids \[1, 3\]; expected logits \(1, 3, V\)"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(own, spec, message):
    with pytest.raises(ConfigError, match=message):
        open_targets([], spec.format(own=own))


def test_a_wrapped_model_refuses_clamps_it_would_ignore():
    model = Plain(TinyRecurrent(), 32)
    with pytest.raises(ConfigError, match="no clamp site 'R'"):
        model.forward(mx.zeros((1, 3), mx.int32), intervention=Intervention((Clamp("R", 0.5),)))


def test_the_command_exits_by_the_verdicts(own):
    good = kssm("verify", "--model", f"{own}:build", "--only", "C2,C6", "--json")
    assert good.exit_code == 0 and [c["verdict"] for c in json.loads(good.stdout)] == ["pass", "pass"]
    table = kssm("verify", "--model", f"{own}:build", "--only", "C5,C6")
    assert table.exit_code == 0 and "2 checks in" in table.stdout and "1 not measurable" in table.stdout
    unusable = kssm("verify", "--model", f"{own}:missing")
    assert unusable.exit_code == 2 and unusable.stderr.startswith("kssm: cannot import")


def small_recipe(folder: Path, letters: str) -> Path:
    (folder / "text.txt").write_text(f"{letters}\n" * 400)
    (folder / "small.toml").write_text(
        f'[data]\nsource = "file:{folder}/text.txt"\ntokenizer = "chars"\n'
        "[train]\ncontext = 16\nbatch_size = 4\n[eval]\ntokens = 256\n"
    )
    return folder / "small.toml"


def test_it_takes_the_place_of_a_recipes_model(own, tmp_path):
    ctx = open_targets([small_recipe(tmp_path, "abcdefghijklmnop")], f"{own}:build")
    assert isinstance(ctx.model, Plain) and ctx.data.vocab_size == 17 and not ctx.trained
    (tokens,) = suite.run_suite(ctx, ["C13"])
    assert tokens.verdict == "fail" and "vocabulary of model 16, tokenizer 17" in tokens.got


@pytest.mark.parametrize("name", ["build", "foreign", "bare"])
def test_no_check_stumbles_over_it(own, tmp_path, monkeypatch, name):
    """Whatever a model lacks is "not measurable", in words; the lock (C39) asks no model."""
    ctx = open_targets([small_recipe(tmp_path, "abcdefghijklmno")], f"{own}:{name}")
    ctx = replace(ctx, untrained=True)
    monkeypatch.setattr(overfit, "STEPS", 5)
    found = {c.id: c for c in suite.run_suite(ctx, run_checks().keys() - {"C39"})}
    assert {id: c.got for id, c in found.items() if "traceback" in c.numbers} == {}
    assert {found[id].verdict for id in ("C2", "C6", "C16", "C30")} == {"pass"}
    assert found["C9"].got == 'the trace has no "block00/R"'


def test_a_forward_that_is_something_else_is_left_alone(own):
    foreign, bare = (open_targets([], f"{own}:{name}").model for name in ("foreign", "bare"))
    assert isinstance(foreign, Plain) and not hasattr(foreign, "hidden")
    assert foreign.stochastic and foreign.no_decay == ("embed.weight",)
    assert type(bare).__name__ == "Bare"


def test_a_wrapped_model_says_that_it_cannot_reset():
    model, tokens = Plain(TinyRecurrent(), 32), mx.zeros((1, 3), mx.int32)
    with pytest.raises(NotMeasurable, match="TinyRecurrent takes no resets, and there is more than one"):
        model.forward(tokens, resets=tokens == 0)


# --- weights --------------------------------------------------------------------------------------------


def test_weights_are_a_trained_model_without_a_recipe(tmp_path):
    folder = exported(tiny("mamba"), tmp_path / "host")
    found = {c.id: c for c in kssm_mlx.verify(folder, only=["C2", "C5", "C6", "C16", "C14"])}
    assert [found[id].verdict for id in ("C2", "C5", "C6")] == ["pass"] * 3
    assert found["C2"].evidence == "1 run"
    assert (found["C16"].verdict, found["C14"].verdict) == ("not measurable", "not measurable")
    assert not (folder / "checks.json").exists()


def test_what_is_nothing_is_refused_with_the_nearest_recipe():
    with pytest.raises(ConfigError, match=r"no recipe 'defualt'.*did you mean 'default'"):
        kssm_mlx.verify("defualt")
    with pytest.raises(ConfigError, match="needs a recipe, a run folder, weights or --model"):
        kssm_mlx.verify()


# --- runs that a claim compares -------------------------------------------------------------------------


@pytest.fixture
def claim(monkeypatch):
    """X1, a check of level G that reports the runs it was given."""

    def compare(ctx: Context):
        ctx.need("runs")
        runs, baseline = ([r.run_folder.name for r in of or ()] for of in (ctx.runs, ctx.baseline))
        return verdict("X1", True, f"{runs} against {baseline}", "a comparison")

    monkeypatch.setitem(REGISTRY, "X1", Definition("X1", "G", "arms are compared", "here", compare))
    monkeypatch.setattr(suite, "list_suite", lambda level: {"G": ("X1",), "P": ("C6",)}.get(level, ()))


def a_run(folder: Path, seed: int, steps: int = 2) -> Path:
    text = folder.parent / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 100)
    recipe = folder.parent / f"{folder.name}.toml"
    recipe.write_text(
        f'[data]\nsource = "file:{text}"\ntokenizer = "chars"\n[model]\nsize = "xs"\nd_model = 8\n'
        f"n_groups = 8\nmlp_hidden = 8\n[train]\nsteps = {steps}\nseed = {seed}\nbatch_size = 4\n"
        "context = 16\n[eval]\nevery = 2\ntokens = 256\nsample_tokens = 0\n[save]\nevery = 2\n"
    )
    kssm_mlx.train(recipe, folder)
    return folder


@pytest.mark.prints
def test_several_runs_are_compared_and_the_verdict_is_kept_with_each(claim, tmp_path):
    asked = (("a", 0, 2), ("b", 1, 2), ("c", 0, 3))
    runs = [a_run(tmp_path / name, seed, steps) for name, seed, steps in asked]
    (found,) = kssm_mlx.verify(*runs)
    assert found.got == "['c'] against ['a', 'b']"
    assert found.evidence == "1 run"
    for folder in runs:
        (kept,) = json.loads((folder / "checks.json").read_text())["claim"]
        assert kept["id"] == "X1" and kept["got"] == found.got
    (one_arm,) = kssm_mlx.verify(*runs[:2])
    assert (one_arm.got, one_arm.evidence) == ("['a', 'b'] against []", "2 seeds")
    assert kssm_mlx.verify(runs[0], level="G")[0].got == "needs runs, none given"
    shutil.rmtree(runs[1])
    with pytest.raises(ConfigError, match="only run folders can be compared; default is none"):
        kssm_mlx.verify(runs[0], "default")
    with pytest.raises(ConfigError, match="--model is looked at alone"):
        kssm_mlx.verify(runs[0], runs[2], model="somewhere:build")
