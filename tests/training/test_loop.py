"""A run that stops and goes on is the run that did not stop; what cannot go on says why."""

import io
import json
import math
import os
import shutil
import signal
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console

from kssm_mlx import _blas
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.errors import CheckFailed, CheckpointError, ConfigError, DataError, Interrupted
from kssm_mlx.models import build, configure
from kssm_mlx.models.base import flatten
from kssm_mlx.runs import layout, lock
from kssm_mlx.training.checkpoints import checkpoint
from kssm_mlx.training.json_lines import Rows
from kssm_mlx.training.loop import SKIPS_ALLOWED, Callbacks
from kssm_mlx.training.progress import format_numbers
from tests.support.fakes import TinyRecurrent
from tests.support.tiny_run import STEPS, command, in_process, rows, saved, tiny_model, tiny_recipe, tiny_run

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, result) of a run that nothing disturbed. Read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, tiny_run(folder)


def assert_same_run(folder, whole):
    """Every tensor of the last checkpoint and every row but its timings, to the last bit."""
    mine, other = saved(folder).snapshot, saved(whole).snapshot
    assert mine.step == other.step
    for stem, tensors in other.tensors.items():
        assert mine.tensors[stem].keys() == tensors.keys()
        for name, array in tensors.items():
            assert np.array(mine.tensors[stem][name]).tobytes() == np.array(array).tobytes(), name
    assert rows(folder, "train", "eval") == rows(whole, "train", "eval")
    assert mine.state["tokens"] == other.state["tokens"] and mine.state["best"] == other.state["best"]


class Stop(Exception):
    """The plug is pulled: no save, no farewell."""


def stop_after(step: int) -> Callbacks:
    def on_step(now, row):
        if now == step:
            raise Stop

    return Callbacks(on_step=on_step)


def stopped(folder, step: int, **options) -> None:
    with pytest.raises(Stop):
        tiny_run(folder, hooks=stop_after(step), **options)


def events(folder) -> list[str]:
    return [row["message"] for row in rows(folder, "event")]


# What a run leaves behind


def test_a_run_writes_rows_checkpoints_and_returns_its_end(whole):
    folder, result = whole
    assert [r["step"] for r in rows(folder, "train")] == list(range(1, STEPS + 1))
    assert [r["step"] for r in rows(folder, "eval")] == [4, 8, 12]
    assert result.step == STEPS and result.started_at == 0 and not result.was_finished
    assert result.evaluation == rows(folder, "eval")[-1]
    assert result.best == min(rows(folder, "eval"), key=lambda r: r["nats_per_token"])
    assert layout.read_pointer(folder / "checkpoints", "LATEST") == saved(folder).path
    best = checkpoint.load(layout.read_pointer(folder / "checkpoints", "BEST"))
    assert best.step == result.best["step"]
    assert not (folder / lock.NAME).exists()


def test_state_json_tells_what_the_run_was(whole):
    folder, result = whole
    state = json.loads((saved(folder).path / "state.json").read_text())
    assert state["step"] == state["cursor"] == STEPS
    assert state["tokens"] == STEPS * 4 * 16
    assert state["key"] == np.array(result.state.key).tolist()
    assert state["identity"]["config"]["train.steps"] == STEPS
    assert state["environment"]["mlx"] == mx.__version__
    assert {"device", "python", "kssm_mlx", "MLX_ENABLE_TF32"} < state["environment"].keys()


def test_training_learns(whole):
    losses = [r["loss"] for r in rows(whole[0], "train")]
    assert losses[-1] < losses[0] - 0.02


def test_the_model_holds_the_final_parameters(tmp_path, whole):
    model = tiny_model()
    result = tiny_run(whole[0], resume=True, model=model)
    assert result.was_finished
    final = saved(whole[0]).snapshot.tensors["model"]
    assert all(np.array_equal(array, final[name]) for name, array in flatten(model.parameters()).items())


# Resume


@pytest.mark.parametrize("step", [2, 4, 6, 9, 11])
def test_stopped_anywhere_and_resumed_is_the_same_run(tmp_path, whole, step):
    folder = tmp_path / "run"
    stopped(folder, step)
    result = tiny_run(folder, resume=True)
    assert result.started_at == (step - 1) // 4 * 4
    assert_same_run(folder, whole[0])


def test_compiled_killed_and_resumed_in_new_processes_is_the_same_run(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    tiny_run(whole, compiled=True)
    assert in_process(folder, compiled=True, fault="before a row").returncode == KILLED
    done = in_process(folder, compiled=True, resume=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming {folder}: 4 of 12 steps are done" in done.stdout
    assert_same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("hand_off", [False, True])
def test_the_real_model_compiled_resumes_exactly(tmp_path, hand_off):
    runs = [tmp_path / name / "run" for name in "ab"]
    for folder in runs:
        folder.parent.mkdir()
    common = {"train": {"hand_off": hand_off, "context": 8, "steps": 6}, "save": {"every": 2}}
    common["data"] = {"source": tiny_recipe(tmp_path / "run").data.source}

    def model():
        return build(configure("kssm", "xs", vocab_size=6, context=8))

    tiny_run(runs[0], compiled=True, model=model(), **common)
    stopped(runs[1], 5, compiled=True, model=model(), **common)
    tiny_run(runs[1], resume=True, compiled=True, model=model(), **common)
    assert_same_run(runs[1], runs[0])
    assert "R_block00" in rows(runs[0], "train")[0]


@pytest.mark.parametrize("train", [{"hand_off": True, "context": 8}, {"accumulation": 2}])
def test_other_kinds_of_runs_resume_exactly_too(tmp_path, train):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    text = tiny_recipe(tmp_path / "run").data.source
    common = {"train": train, "data": {"source": text}}
    tiny_run(tmp_path / "a" / "run", **common)
    stopped(tmp_path / "b" / "run", 6, **common)
    tiny_run(tmp_path / "b" / "run", resume=True, **common)
    assert_same_run(tmp_path / "b" / "run", tmp_path / "a" / "run")
    has_carry = any(
        name.startswith("carry") for name in saved(tmp_path / "a" / "run").snapshot.tensors["optimizer"]
    )
    assert has_carry == ("hand_off" in train)


def test_another_evaluation_frequency_does_not_change_the_training(tmp_path, whole):
    folder = tmp_path / "run"
    text = saved(whole[0]).snapshot.state["identity"]["config"]["data.source"]
    stopped(folder, 6, data={"source": text})
    tiny_run(folder, resume=True, allow=True, eval={"every": 1}, data={"source": text})
    assert rows(folder, "train") == rows(whole[0], "train")
    assert [r["step"] for r in rows(folder, "eval")] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert "allowed change: eval.every was 4, is now 1" in events(folder)


def test_another_blas_is_told_because_it_rounds_otherwise(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopped(folder, 5)
    other = _blas.Blas("another BLAS", "by hand", "", True)
    monkeypatch.setattr(_blas, "_status", other)
    tiny_run(folder, resume=True)
    assert any("is now 'another BLAS': bitwise equality is not promised" in line for line in events(folder))


def test_a_finished_run_says_so_and_does_nothing(tmp_path, whole):
    folder, out = whole[0], io.StringIO()
    before = rows(folder, "train", "eval")
    result = tiny_run(folder, resume=True, out=out)
    assert result.was_finished and result.step == STEPS
    assert "is finished: 12 of 12 steps are done" in out.getvalue()
    assert rows(folder, "train", "eval") == before


def test_a_finished_run_goes_on_with_more_steps_when_allowed(tmp_path):
    folder = tmp_path / "run"
    tiny_run(folder, train={"steps": 4})
    result = tiny_run(folder, resume=True, allow=True, train={"steps": 6})
    assert (result.started_at, result.step) == (4, 6)


def test_resume_without_a_checkpoint_starts_again(tmp_path, whole):
    folder = tmp_path / "run"
    stopped(folder, 3)
    tiny_run(folder, resume=True)
    assert f"{folder} has no checkpoint yet: starting from step 0" in events(folder)
    assert_same_run(folder, whole[0])


def test_a_half_written_row_is_dropped(tmp_path, whole):
    folder = tmp_path / "run"
    stopped(folder, 6)
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "st')
    tiny_run(folder, resume=True)
    assert_same_run(folder, whole[0])


# Damage


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path, whole):
    folder, out = tmp_path / "run", io.StringIO()
    stopped(folder, 10)
    damaged = folder / "checkpoints" / "step_00000008"
    os.truncate(damaged / "model.safetensors", 100)
    tiny_run(folder, resume=True, out=out)
    expected = f"checkpoint {damaged} is damaged: model.safetensors has sha256"
    assert expected in out.getvalue() and "falling back to step_00000004" in out.getvalue()
    assert any(message.startswith(expected) for message in events(folder))
    assert damaged.with_name("step_00000008.damaged").exists()
    assert_same_run(folder, whole[0])


def test_the_best_is_never_a_damaged_one_after_a_resume(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 10)
    checkpoints = folder / "checkpoints"
    assert layout.read_pointer(checkpoints, "BEST").name == "step_00000008"
    (checkpoints / "step_00000008" / "manifest.json").unlink()
    with pytest.raises(Stop):
        tiny_run(folder, resume=True, hooks=stop_after(6))
    assert layout.read_pointer(checkpoints, "BEST").name == "step_00000004"
    assert layout.read_pointer(checkpoints, "LATEST").name == "step_00000004"


def test_a_best_that_was_deleted_is_forgotten(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 6, eval={"every": 2}, save={"every": 5})  # checkpoints 2, 4 (new bests) and 5
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    assert layout.read_pointer(folder / "checkpoints", "BEST").name == "step_00000004"
    with pytest.raises(Stop):
        tiny_run(folder, resume=True, hooks=stop_after(6), eval={"every": 2}, save={"every": 5})
    assert layout.read_pointer(folder / "checkpoints", "BEST") is None


def test_without_a_good_checkpoint_nothing_is_touched(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 6)
    (folder / "checkpoints" / "step_00000004" / "state.json").unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .*state.json is missing"):
        tiny_run(folder, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


# Refusals


def test_a_second_run_into_a_folder_is_refused(tmp_path, whole):
    with pytest.raises(CheckpointError, match=r"already holds a run; kssm train .* --resume goes on"):
        tiny_run(whole[0])


def test_two_runs_at_once_into_a_folder_are_refused(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        command(folder, announce=1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    while not first.stdout.readline().startswith("at 1"):
        assert first.poll() is None
    with pytest.raises(CheckpointError, match=f"in use by process {first.pid}"):
        tiny_run(folder)
    first.communicate("\n")
    assert first.returncode == 0


def test_a_lock_held_for_the_whole_run_is_kept(tmp_path):
    folder = tmp_path / "run"
    with lock.hold(folder):
        tiny_run(folder, train={"steps": 1})
        assert lock.is_held_here(folder)


def test_a_changed_recipe_is_refused_with_both_values(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError) as e:
        tiny_run(folder, resume=True, train={"learning_rate": 0.001, "clip": 2.0})
    message = str(e.value)
    assert "train.clip was 1.0, is now 2.0; train.learning_rate was 0.01, is now 0.001" in message
    assert "--allow-config-change" in message
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_words_about_the_recipe_may_change(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    assert tiny_run(folder, resume=True, about={"question": "another?"}).step == STEPS


def test_another_tokenizer_is_refused_even_if_changes_are_allowed(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    with pytest.raises(CheckpointError, match=r"trained with tokenizer \w+ of 6 tokens, .* of 256 tokens"):
        tiny_run(folder, resume=True, allow=True, data={"tokenizer": "bytes"})


def test_other_data_is_refused(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    text = tmp_path / "text.txt"
    text.write_text(text.read_text()[::-1])
    with pytest.raises(ConfigError, match=r"files.train.bin was '\w+', is now"):
        tiny_run(folder, resume=True)


def test_another_model_cannot_continue_a_run(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    with pytest.raises(
        CheckpointError, match=r"blocks.0.mix.bias has shape \(24,\) .* and \(48,\) in the model"
    ):
        tiny_run(folder, resume=True, allow=True, model=tiny_model(width=16))


def test_a_state_of_other_tracks_is_not_handed_on(tmp_path):
    folder, train = tmp_path / "run", {"hand_off": True, "context": 8}
    stopped(folder, 5, train=train)
    result = tiny_run(folder, resume=True, allow=True, train={**train, "batch_size": 2})
    assert flatten(result.state.carry)["0.0"].shape == (2, 8)


def test_a_window_longer_than_the_text_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"lower train\.context"):
        tiny_run(tmp_path / "run", train={"context": 2000})


def test_a_full_disk_in_the_middle_ends_in_one_line_and_resumes(tmp_path, whole, monkeypatch):
    folder, real, full = tmp_path / "run", checkpoint.files.write_synced, []

    def write_synced(path, write):
        if "step_00000008" in str(path):
            full.append(path)
            raise OSError(28, os.strerror(28))
        real(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.files, "write_synced", write_synced)
        with pytest.raises(CheckpointError, match="No space left on device; free disk space"):
            tiny_run(folder)
    assert full
    tiny_run(folder, resume=True)
    assert_same_run(folder, whole[0])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_for_rows_is_one_line(tmp_path):
    metrics = Rows(tmp_path / "metrics.jsonl", 0)
    metrics.close()
    metrics._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(CheckpointError, match=r"cannot write metrics.jsonl in .*free disk space"):
        metrics.write({"step": 1})


# Divergence


class Exploding(TinyRecurrent):
    """Logits without a number."""

    def forward(self, tokens, *args, **kwargs):
        out = super().forward(tokens, *args, **kwargs)
        return out._replace(logits=out.logits * math.inf)


def test_a_gradient_that_stays_not_finite_ends_the_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(CheckFailed) as e:
        tiny_run(folder, model=tiny_model(kind=Exploding))
    message = str(e.value)
    assert f"not finite for {SKIPS_ALLOWED} steps in a row, up to step 10" in message
    assert "lower train.learning_rate" in message and e.value.exit_code == 1
    assert [r["loss"] for r in rows(folder, "train")] == [None] * SKIPS_ALLOWED
    assert rows(folder, "eval")[0]["nats_per_token"] is None
    assert layout.read_pointer(folder / "checkpoints", "BEST") is None


# Hooks


def test_hooks_see_each_step_each_evaluation_and_the_model_of_that_step(tmp_path):
    folder, stepped, scored = tmp_path / "run", [], []

    def sample(model, key):
        return [{"text": f"{float(mx.sum(model.embed.weight)):.9g}", "key": key.tolist()}]

    hooks = Callbacks(
        sample=sample,
        on_step=lambda step, row: stepped.append((step, row["loss"])),
        on_eval=lambda step, state, row: scored.append(
            (step, f"{float(mx.sum(state.params['embed']['weight'])):.9g}")
        ),
    )
    tiny_run(folder, hooks=hooks)
    assert stepped == [(r["step"], r["loss"]) for r in rows(folder, "train")]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(s["step"], s["text"]) for s in samples] == scored
    assert [s["step"] for s in samples] == [4, 8, 12]
    assert len({tuple(s["key"]) for s in samples}) == 3


def test_evaluating_and_sampling_do_not_disturb_training(tmp_path, whole):
    """The same run that is never looked at before its end."""
    folder = tmp_path / "run"
    hooks = Callbacks(sample=lambda model, key: [{"n": int(mx.random.randint(0, 9, key=key))}])
    tiny_run(folder, hooks=hooks, eval={"every": 100})
    assert rows(folder, "train") == rows(whole[0], "train")


def test_the_step_is_traced_once(tmp_path):
    traces = []

    class Counting(TinyRecurrent):
        def forward(self, tokens, *args, **kwargs):
            traces.append(tokens.shape)
            return super().forward(tokens, *args, **kwargs)

    tiny_run(
        tmp_path / "run",
        compiled=True,
        model=tiny_model(kind=Counting),
        hooks=Callbacks(sample=lambda model, key: []),
    )
    assert traces == [(4, 16), (4, 16)]  # of the step, and of the evaluation


# Signals


def signalled(folder, number, at: int, again: int | None = None) -> subprocess.Popen:
    """A run in a process of its own that gets a signal, or two, in the middle of step `at`."""
    run = subprocess.Popen(
        command(folder, announce=at),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not run.stdout.readline().startswith(f"at {at}"):
        assert run.poll() is None
    run.send_signal(number)
    assert "finishing this step" in run.stderr.readline() + run.stderr.readline()
    if again:
        run.send_signal(again)
        run.wait()
    return run


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_step_and_says_so(tmp_path, whole, number, code):
    folder = tmp_path / "run"
    run = signalled(folder, number, at=6)
    _, err = run.communicate("\n")
    assert run.returncode == code
    assert f"stopped by {number.name}; saved after step 6" in err and "--resume" in err
    assert saved(folder).snapshot.pinned == number.name
    assert not (folder / lock.NAME).exists()
    tiny_run(folder, resume=True)
    assert_same_run(folder, whole[0])
    assert 6 in layout.list_checkpoints(folder / "checkpoints")


def test_a_second_signal_stops_at_once_and_loses_nothing_saved(tmp_path, whole):
    folder = tmp_path / "run"
    run = signalled(folder, signal.SIGINT, at=6, again=signal.SIGTERM)
    run.communicate()
    assert run.returncode == -signal.SIGTERM
    assert saved(folder).snapshot.step == 4
    tiny_run(folder, resume=True)
    assert_same_run(folder, whole[0])


def test_a_signal_in_this_process_raises_interrupted(tmp_path, capfd):
    folder = tmp_path / "run"
    hooks = Callbacks(on_step=lambda step, row: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as e:
        tiny_run(folder, hooks=hooks)
    assert e.value.exit_code == 143 and saved(folder).snapshot.step == 2
    assert (
        capfd.readouterr().err == "\nSIGTERM: finishing this step, then saving (once more to stop at once)\n"
    )


# What a person sees


def test_plain_lines_away_from_a_terminal(tmp_path):
    out = io.StringIO()
    tiny_run(tmp_path / "run", out=out)
    lines = out.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("step 3/12  loss ")]) == 1
    if mx.default_device() == mx.cpu:  # g++ is at work, for which a GPU has its driver
        assert lines.pop(0).startswith("compiling the first step")
    assert "tokens/s" in lines[0] and "ETA" in lines[0]
    assert any(line.startswith("step 8: validation ") and "bits/byte" in line for line in lines)


def test_a_bar_on_a_terminal(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    tiny_run(tmp_path / "run", console=console)
    assert "12/12" in out.getvalue() and "tokens/s" in out.getvalue() and "━" in out.getvalue()


def test_the_numbers_of_a_line():
    row = {
        "loss": 1.23456,
        "tokens_per_second": 12345.6,
        "R_block00": 0.25,
        "R_block01": 0.75,
        "R_block02": None,
    }
    assert format_numbers(row) == "loss 1.2346  R 0.500  12,346 tokens/s"
    assert format_numbers({"loss": None, "tokens_per_second": 1.0}) == "loss not finite  1 tokens/s"


def test_the_data_of_a_run_is_read_not_written(whole):
    recipe = tiny_recipe(whole[0])
    assert prepare(recipe.data, whole[0].parent / "data").verify()["train_tokens"] > 500


def test_a_folder_deleted_under_a_run_ends_it_in_one_line(tmp_path):
    """And not in a folder of checkpoints without a recipe or rows, at exit code 0."""
    folder = tmp_path / "run"

    def delete(step, row):
        if step == 3:
            shutil.rmtree(folder)

    with pytest.raises(CheckpointError, match=r"metrics.jsonl was deleted while the run was writing"):
        tiny_run(folder, hooks=Callbacks(on_step=delete))
    assert not folder.exists()
