"""`kssm generate`: prompts from files, what is held, what is traced."""

import json
from pathlib import Path

import pytest

from tests.support.cli_fakes import kssm, refused

pytestmark = pytest.mark.usefixtures("uncompiled")
OLD = Path(__file__).parents[1] / "runs" / "run-0.1.0"


def test_a_prompt_can_be_a_file(runs, tmp_path):
    (tmp_path / "p").write_text("once\nupon\n")
    done = kssm("generate", "m", "--prompt-file", tmp_path / "p", "--max-tokens", 3)
    assert done.exit_code == 0 and done.stdout.startswith("once\nupon")
    both = kssm("generate", "m", "a", "--prompt-file", tmp_path / "p", "--max-tokens", 3)
    assert both.stdout.startswith("[1] a") and "\n[2] once\nupon" in both.stdout
    assert "--prompt-file takes a text file" in refused(kssm("generate", "m", "--prompt-file", tmp_path))
    (tmp_path / "p").write_bytes(b"\xff")
    assert "p is not UTF-8" in refused(kssm("generate", "m", "--prompt-file", tmp_path / "p"))


def test_a_trace_has_a_row_a_token_and_a_picture_beside_it(tmp_path):
    path = tmp_path / "t.jsonl"
    asked = ("generate", OLD, "the ", "--max-tokens", 5, "--past-separator", "--trace", path)
    done = kssm(*asked, "--trace-values", "psi, U", "--trace-units")
    assert done.exit_code == 0
    assert done.stderr.endswith(f"kssm: wrote {path}\nkssm: wrote {tmp_path / 't.png'}\n")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["token"] for row in rows] == list(range(5))
    assert rows[0].keys() == {"row", "token", "id", "text", "logprob", "U", "psi"} and rows[0]["psi"]["units"]
    assert "no 'state' to trace" in refused(kssm(*asked, "--trace-values", "state"))
    assert "choose another place" in refused(kssm(*asked[:-1], tmp_path / "absent" / "t.jsonl"))


@pytest.mark.parametrize("name", ["t.png", "t", "t.json", ".jsonl"])
def test_a_trace_whose_picture_could_take_its_place_is_refused(tmp_path, name):
    path = tmp_path / name
    said = refused(kssm("generate", OLD, "the ", "--max-tokens", 2, "--trace", path))
    assert said == f"kssm: --trace takes FILE.jsonl, got '{path}'\n" and not list(tmp_path.iterdir())


def test_help_says_that_prompts_share_their_random_numbers():
    said = " ".join(kssm("generate", "-h").output.split())
    assert "every prompt gets the same random numbers" in said


def test_omega_is_traced_of_what_has_phases(tmp_path):
    asked = ("generate", OLD, "the ", "--max-tokens", 3, "--past-separator", "--trace", tmp_path / "t.jsonl")
    assert kssm(*asked, "--trace-values", "omega").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["omega"]["mean"] is None for row in rows] == [True, False, False] and "psi" not in rows[0]


def test_each_of_several_texts_has_its_rows_and_its_picture(tmp_path):
    path = tmp_path / "t.jsonl"
    asked = ("generate", OLD, "the ", "a", "--max-tokens", 2, "--past-separator", "--trace", path)
    assert kssm(*asked, "--trace-values", "U").exit_code == 0
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [0, 0, 1, 1]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["t-2.png", "t.png"]


def test_pictures_of_several_texts_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("kssm_mlx.reports.written.plot_written", lambda *a: drawn.append(a[3:]) or a[2])
    asked = ("generate", OLD, "--max-tokens", 2, "--past-separator", "--trace", tmp_path / "t.jsonl")
    assert kssm(*asked, "the ", "", "a" * 99).exit_code == 0
    assert kssm(*asked, "the ", "--hold", "R=0.5").exit_code == 0
    name = OLD.name
    assert drawn == [
        (f"{name}, 'the'", {}),
        (f"{name}, text 2", {}),
        (f"{name}, '{'a' * 40}...'", {}),
        (name, {"R": 0.5}),
    ]


def test_a_hold_is_in_the_trace(tmp_path):
    path = tmp_path / "t.jsonl"
    done = kssm(
        *("generate", OLD, "the ", "--max-tokens", 4, "--past-separator"),
        *("--hold", "R=0.5", "--carried", "--trace", path),
    )
    assert done.exit_code == 0, done.output
    R = [json.loads(line)["R"]["mean"] for line in path.read_text().splitlines()]
    assert pytest.approx([0.5] * 4, abs=1e-5) == R


@pytest.mark.parametrize(
    "options, says",
    [
        (["--hold", "R=2"], "a clamp on 'R' to 2"),
        (["--hold", "R=0.1,0.2"], "one value"),
        (["--hold", "R"], "--hold takes SITE=VALUE"),
        (["--hold", "Q=0.1"], "no clamp site 'Q'; this model has R, psi, output"),
        (["--carried"], "without --hold R=0.5; add that"),
    ],
)
def test_a_hold_that_cannot_be_is_refused(options, says):
    assert says in refused(kssm("generate", OLD, "the ", "--max-tokens", 2, *options))
