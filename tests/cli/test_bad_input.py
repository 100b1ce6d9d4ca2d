"""What a newcomer gets wrong is answered in one line, exit code 2, with nothing faked below the command."""

import os

import pytest

from tests.support.cli_fakes import kssm, refused

RECIPE = '[data]\nsource = "file:{}"\n[model]\nsize = "xs"\n[train]\nsteps = 3\n'


@pytest.fixture
def train(tmp_path):
    """`train(text, ...)`: the result of training on a file with these bytes (None: no such file)."""

    def run(content, *options, out=tmp_path / "run"):
        text = tmp_path / "text.txt"
        if content is not None:
            text.write_bytes(content)
        recipe = tmp_path / "mine.toml"
        recipe.write_text(RECIPE.format(text))
        return kssm("train", recipe, "--out", out, *options)

    return run


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, [], "text.txt"),
        (b"", [], "text"),
        (b"   \n\n", [], "text"),
        (bytes(range(256)) * 50, [], "text.txt"),
        (b"x" * 9000, ["--set", "data.source=fiel:x"], "fiel"),
        (b"x" * 9000, ["--set", "data.tokenizer=byte"], "did you mean 'bytes'"),
        (b"x" * 9000, ["--set", "model.family=ksm"], "did you mean 'kssm'"),
        (b"x" * 9000, ["--set", "model.size=xxl"], "sizes are xs"),
        (b"x" * 9000, ["--set", "model.kapa=0"], "did you mean 'kappa'"),
        (b"x" * 9000, ["--set", "model.kappa=-1"], "kappa"),
        (b"x" * 9000, ["--set", "train.steps=0"], "train.steps"),
        (b"x" * 9000, ["--waive", "C999=because"], "waiver of C999: no such check"),
    ],
)
def test_unusable_input_is_one_line(train, content, options, message):
    assert message in refused(train(content, *options))


def test_a_folder_that_cannot_be_made(train, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(train(b"x" * 9000, out=tmp_path / "file" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(train, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission denied" in refused(train(b"x" * 9000, out=tmp_path / "locked" / "run"))


@pytest.mark.parametrize("command", ["verify", "generate", "eval", "report"])
def test_what_is_not_a_run(command, tmp_path):
    refused(kssm(command, tmp_path))
    refused(kssm(command, tmp_path / "absent"))


@pytest.mark.slow
def test_the_life_of_a_run(tmp_path):
    """Train, verify, evaluate, generate from a state file, then every way to resume wrongly."""
    recipe, folder = tmp_path / "mine.toml", tmp_path / "run"
    lines = (
        f"{i} times {j} is {i * j}, as everybody knows by heart.\n" for i in range(60) for j in range(60)
    )
    (tmp_path / "text.txt").write_text("".join(lines))
    recipe.write_text(RECIPE.format(tmp_path / "text.txt") + "[save]\nevery = 2\n[eval]\nprompt = 'The '\n")
    waivers = [part for check in ("C15", "C29", "C17", "C18", "C19") for part in ("--waive", f"{check}=tiny")]
    trained = kssm("train", recipe, "--out", folder, *waivers)
    assert trained.exit_code == 0, trained.output
    assert kssm("verify", folder, "--only", "C1,C2").exit_code == 0
    assert kssm("eval", folder, "--tokens", 512).exit_code == 0
    assert (
        kssm("generate", folder, "a", "bcd", "--max-tokens", 5, "--state-out", tmp_path / "s").exit_code == 0
    )
    assert kssm("generate", folder, "--state-in", tmp_path / "s", "--max-tokens", 5).exit_code == 0
    again = ("train", recipe, "--out", folder)
    assert "--resume" in refused(kssm(*again))
    assert "--allow-config-change" in refused(kssm(*again, "--resume", "--set", "train.learning_rate=1e-4"))
    (folder / "checkpoints" / "step_00000003" / "model.safetensors").write_bytes(b"junk")
    resumed = kssm(*again, "--resume", *waivers)
    assert resumed.exit_code == 0 and "falling back to step_00000002" in resumed.output
