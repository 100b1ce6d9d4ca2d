"""Commands parse, call and print: what they pass on, what they print, what they exit with."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from kssm_mlx.errors import CheckFailed
from kssm_mlx.training.parallel.ranks import ALONE
from tests.support.cli_fakes import DIGEST, a_check, kssm, refused
from tests.support.report_fakes import write_run

pytestmark = pytest.mark.usefixtures("uncompiled")

ROOT = Path(__file__).parents[2]
RECIPE = '[about]\nquestion = "Does it [run]?"\n[model]\nsize = "xs"\n[train]\nsteps = 30\n'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_train_passes_everything_on_and_shows_the_run(runs, recipe, tmp_path):
    folder = write_run(tmp_path / "run")
    result = kssm(
        *("train", recipe, "--out", folder, "--set", "train.steps=7", "--set", "model.kappa=0", "--resume"),
        *("--allow-config-change", "--waive", "C15=one document", "--track", "lab"),
    )
    assert result.exit_code == 0, result.output
    ((name, (loaded, out), options),) = runs.asked
    assert (name, out) == ("train", folder)
    assert (loaded.train.steps, loaded.model.overrides) == (7, {"kappa": 0})
    assert options.pop("console") is not None
    assert options == {
        "resume": True,
        "allow_config_change": True,
        "waivers": {"C15": "one document"},
        "verify": True,
        "track": "lab",
        "ranks": ALONE,
    }
    assert "validation loss, nats/token" in result.stdout and "card.md" in result.stdout
    assert "no token sees its future" in result.stdout and "The quick sample" in result.stdout


def test_an_interrupt_while_checks_are_asked_says_how_to_go_on(runs, recipe, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    folder, absent = write_run(tmp_path / "run"), tmp_path / "absent"
    said = refused(kssm("train", recipe, "--out", folder), 130)
    assert said == f"kssm: interrupted; to go on: kssm train {folder} --resume\n"
    assert refused(kssm("train", recipe, "--out", absent), 130) == "kssm: interrupted\n"


def test_a_trained_run_that_fails_a_check_is_shown_before_it_is_refused(runs, recipe, tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    text = (folder / "samples.jsonl").read_text().replace("quick", "\\u001b[2Jquick")
    (folder / "samples.jsonl").write_text(text)

    def failing(*_, **__):
        raise CheckFailed("C17 better than counting")

    monkeypatch.setattr(runs, "train", failing)
    result = kssm("train", recipe, "--out", folder)
    assert (result.exit_code, result.stderr) == (1, "kssm: C17 better than counting\n")
    assert "card.md" in result.stdout and (folder / "card.md").is_file()
    assert "\\x1b[2Jquick" in result.stdout and "\x1b" not in result.stdout
    assert refused(kssm("train", recipe, "--out", tmp_path / "untrained"), 1) == result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["defualt"], "no recipe 'defualt'"),
        (["{}", "--set", "train.stpes=7"], "unknown key 'train.stpes'; did you mean 'steps'"),
        (["{}", "--set", "train.steps=many"], "train.steps: input should be a valid integer"),
        (["{}", "--set", "train.steps"], "--set takes section.key=value"),
        (["{}", "--set", "train.steps.x=1"], "'steps' is a value, not a section"),
        (["{}", "--waive", "C15"], '--waive takes a check and a reason such as C15="one document"'),
    ],
)
def test_train_refuses_what_it_cannot_use(runs, recipe, arguments, message):
    assert message in refused(kssm("train", *(a.format(recipe) for a in arguments)))
    assert runs.asked == []


def test_verify_prints_verdicts_and_exits_by_them(runs, recipe):
    good = kssm("verify", recipe, "--only", "C1,C7", "--level", "S")
    assert good.exit_code == 0 and "pass" in good.stdout and "0 [exactly]" in good.stdout
    options = {"only": ["C1", "C7"], "level": "S", "model": None, "untrained": False}
    assert runs.asked == [("verify", (str(recipe),), options)]
    runs.checks.append(a_check("C3", "fail", fix="mend it"))
    bad = kssm("verify", recipe)
    assert bad.exit_code == 1 and "C3: mend it" in bad.stdout
    as_json = kssm("verify", recipe, "--json")
    assert as_json.exit_code == 1 and [c["ok"] for c in json.loads(as_json.stdout)] == [True, False]


def test_verify_explains_a_check_or_says_what_it_needs():
    explained = kssm("verify", "--explain", "C18")
    assert explained.exit_code == 0 and "threshold: " in explained.stdout
    assert "no check 'C999'" in refused(kssm("verify", "--explain", "C999"))
    assert "needs a recipe, a run folder, weights or --model" in refused(kssm("verify"))


def test_quiet_and_verbose(runs, recipe, tmp_path):
    folder = write_run(tmp_path / "run")
    assert kssm("train", recipe, "--out", folder, "--quiet").output == ""
    assert (folder / "card.md").is_file()  # what is not shown is written all the same
    runs.checks[:] = [a_check(), a_check("C7", "fail", fix="unfreeze it")]
    quiet, plain, loud = (kssm("verify", recipe, *o) for o in (["--quiet"], [], ["--verbose"]))
    assert {done.exit_code for done in (quiet, plain, loud)} == {1}
    assert "C2" not in quiet.stdout and "fail C7" in quiet.stdout and "2 checks in" in quiet.stdout
    assert "C2 no token sees" in plain.stdout and "C2: {}" not in plain.stdout and "C2: {}" in loud.stdout
    for command in (("train", recipe, "--out", folder), ("verify", recipe)):
        assert "--quiet and --verbose" in refused(kssm(*command, "--quiet", "--verbose"))


def test_generate_streams_what_it_prints_without_streaming(runs):
    options = ("generate", "m", "once", "--max-tokens", 20, "--temperature", 1, "--seed", 3)
    live, at_once = kssm(*options), kssm(*options, "--no-stream")
    assert live.exit_code == 0 and live.stdout == at_once.stdout and live.stdout.startswith("once")


def test_generate_of_several_prompts_as_json(runs):
    result = kssm("generate", "m", "a", "bc", "--max-tokens", 5, "--seed", 1, "--seed", 2, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    whole = [line for line in lines if "text" in line]
    assert [(c["row"], c["prompt"], c["digest"]) for c in whole] == [(0, "a", DIGEST), (1, "bc", DIGEST)]
    assert all(len(c["ids"]) == len(c["logprobs"]) for c in whole)
    for c in whole:  # what came piece by piece is the text
        assert (
            "".join(line["piece"] for line in lines if "piece" in line and line["row"] == c["row"])
            == c["text"]
        )
    both = kssm("generate", "m", "a", "bc", "--max-tokens", 5)
    assert both.stdout.startswith("[1] a") and "\n[2] bc" in both.stdout


def test_generate_goes_on_from_a_file_as_in_one_go(runs, tmp_path):
    def ids(*arguments):
        result = kssm("generate", "m", *arguments, "--temperature", 1, "--past-separator", "--json")
        assert result.exit_code == 0, result.output
        lines = map(json.loads, result.stdout.splitlines())
        return [line["ids"] for line in lines if "ids" in line]

    file = tmp_path / "talk"
    whole = ids("hello", "you", "--max-tokens", 12)
    first = ids("hello", "you", "--max-tokens", 5, "--state-out", file)
    second = ids("--max-tokens", 7, "--state-in", file)
    assert [a + b for a, b in zip(first, second)] == whole


def test_generate_refuses_a_state_of_other_weights_and_odd_options(runs, tmp_path, monkeypatch):
    kssm("generate", "m", "hello", "--max-tokens", 3, "--state-out", tmp_path / "s")
    assert "top_p is 7.0" in refused(kssm("generate", "m", "x", "--top-p", 7, "--no-stream"))
    assert "'warm' is neither a number nor R" in refused(kssm("generate", "m", "x", "--temperature", "warm"))
    assert "has none" in refused(kssm("generate", "m", "x", "--temperature", "R", "--no-stream"))
    assert "2 seeds for 1 prompts" in refused(
        kssm("generate", "m", "x", "--no-stream", "--seed", 1, "--seed", 2)
    )
    assert "no state file" in refused(kssm("generate", "m", "--state-in", tmp_path / "absent"))
    other = runs.load("m")
    monkeypatch.setattr(
        runs, "load", lambda *_, **__: type(other)(other.model, other.tokenizer, "m", "e" * 64)
    )
    assert "is a state of weights dddddddddddd" in refused(
        kssm("generate", "m", "--state-in", tmp_path / "s")
    )


def test_eval_prints_a_table_or_json(runs, monkeypatch):
    names = ("nats_per_token", "se", "perplexity", "perplexity_se", "bits_per_byte", "context_gain")
    numbers = {
        "data": "validation of m",
        "tokens": 640,
        **dict.fromkeys(names, 1.25),
        "context_gain_se": math.nan,
    }
    asked = {}

    def evaluate(trained, folder, **options):
        asked.update(options, trained=trained, folder=folder)
        return {**numbers, "ladder": {"bigram": 2.5}}

    monkeypatch.setattr("kssm_mlx.runner.evaluate.evaluate", evaluate)
    table = kssm("eval", "m", "--tokens", 640, "--data", "file:x")
    assert "1.2500 ± 1.2500" in table.stdout and "2.5000" in table.stdout
    assert asked == {"trained": runs.load("m"), "folder": "m", "source": "file:x", "tokens": 640}
    as_json = json.loads(kssm("eval", "m", "--json").stdout)
    assert as_json["tokens"] == 640 and as_json["context_gain_se"] is None


def test_report_of_one_run_and_of_two(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", kappa=0.0)
    one = kssm("report", a)
    assert one.exit_code == 0 and one.stdout.splitlines()[-1] == str(a / "card.md")
    two = kssm("report", a, b, "--out", tmp_path / "both")
    assert (tmp_path / "both" / "comparison.png").is_file() and "comparison.md" in two.stdout


def test_recipes_lists_name_question_and_goal(monkeypatch, recipe):
    monkeypatch.setattr("kssm_mlx.training.recipe.list_shipped", lambda: {"mine": recipe})
    result = kssm("recipes")
    assert result.exit_code == 0 and "mine" in result.stdout and "Does it [run]?" in result.stdout


@pytest.mark.parametrize(
    "arguments, code", [(["report", "no-such-run"], 2), (["--version"], 0), (["nonsense"], 2)]
)
def test_the_real_process_exits_with_the_code(arguments, code):
    call = f"import sys; sys.argv = ['kssm', *{arguments}]; from kssm_mlx.cli import app; app()"
    process = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == code and "Traceback" not in process.stderr


def test_no_verify_is_for_checks_and_for_base_models(runs, tmp_path):
    recipe = tmp_path / "host.toml"
    recipe.write_text('[data]\nsource = "pydoc"\n[model]\nbase = "somewhere"\n')
    kssm("train", recipe, "--no-verify")
    kssm("train", "default", "--no-verify")
    kssm("train", "default")
    (_, (hosted, _), first), (_, _, second), (_, _, third) = runs.asked
    assert hosted.model.verify is False
    assert [options["verify"] for options in (first, second, third)] == [False, False, True]
