"""`kssm watch`: what it says of runs that go, stop, are killed or half written, here and elsewhere."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kssm_mlx.cli.live.watch import describe, frame, look_again, sparkline
from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs.glance import Lines, Watched, find_runs
from kssm_mlx.runs.lock import hold, this_process
from tests.support import fake_remote
from tests.support.cli_fakes import kssm, refused
from tests.support.report_fakes import write_run

ROOT = Path(__file__).parents[2]


def add(run, *rows):
    with open(run / "metrics.jsonl", "a") as file:
        file.write("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def shown(*folders, width=80):
    from rich.console import Console

    screen = Console(width=width)
    with screen.capture() as captured:
        screen.print(frame([Watched(folder).look() for folder in folders], width))
    return captured.get()


def test_one_run_in_full_and_many_in_a_line_each(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b", "c")]
    said = kssm("watch", runs[0], "--once")
    assert said.exit_code == 0
    for part in ("a  done  step 60/60", "validation 1.601", "R 0.550", "bigram", "[this", "quick sample"):
        assert part in said.stdout, part
    many = kssm("watch", tmp_path, "--once").stdout
    lines = [line for line in many.splitlines() if "done" in line]
    assert [line.split()[0] for line in lines] == ["a", "b", "c"] and "trigram" in lines[0]
    assert max(len(line) for line in shown(*runs).splitlines()) <= 80
    assert not any(line != line.rstrip() for line in many.splitlines())


def test_into_a_pipe_a_run_that_ended_is_a_line(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    said = kssm("watch", *runs).stdout
    for name in ("a", "b"):
        assert sum(line.startswith(f"{name}  done  step 60/60  loss") for line in said.splitlines()) == 1


def read_until(stream, words):
    """The next line that begins with the words; "" at the end."""
    return next((line for line in iter(stream.readline, "") if line.startswith(words)), "")


def test_into_a_pipe_goes_a_line_for_every_change_until_the_run_ends(tmp_path):
    command = [sys.executable, "-m", "kssm_mlx", "watch", str(tmp_path / "a"), "--every", "0.2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == f"waiting for a run in {tmp_path / 'a'}\n"
    new, run = write_run(tmp_path / "new"), tmp_path / "a"
    recipe = json.loads((new / "recipe.json").read_text())
    with hold(run):
        for file in new.iterdir():
            if file.name != "recipe.json":
                file.rename(run / file.name)
        (new / "recipe.json").write_text(json.dumps({**recipe, "train": {"steps": 62}}))
        (new / "recipe.json").rename(run / "recipe.json")
        assert read_until(process.stdout, "a  running  step 60/62")
        add(run, {"kind": "train", "step": 61, "loss": 2.0})
        assert read_until(process.stdout, "a  running  step 61/62")
        add(run, {"kind": "event", "step": 61, "message": "the learning rate is cut"})
        assert process.stdout.readline() == "a  the learning rate is cut\n"
        add(run, {"kind": "train", "step": 62, "loss": 2.0})
        assert read_until(process.stdout, "a  done  step 62/62")
        add(run, {"kind": "event", "step": 62, "message": "it is being checked"})
        assert process.stdout.readline() == "a  it is being checked\n"
    rest = process.stdout.read()
    assert process.wait() == 0 and "Traceback" not in rest


def test_the_status_follows_the_files(tmp_path):
    run = write_run(tmp_path / "a", steps=60)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "train": {"steps": 100}}))
    add(run, {"kind": "train", "step": 61, "loss": 2.0, "tokens": 100, "tokens_per_second": 50.0, "U": 0.25})
    glance = Watched(run).look()
    assert (glance.status, glance.step, glance.mean("U")) == ("stopped", 61, 0.25)
    assert glance.seconds_left == pytest.approx(39 * 2)
    with hold(run):
        assert Watched(run).look().status == "running" and "running" in shown(run)
    (run / "metrics.jsonl").unlink()
    with hold(run):
        assert Watched(run).look().status == "begins" and "no step yet" in shown(run)


def test_only_what_is_new_is_read_and_a_line_waits_until_it_is_whole(tmp_path):
    lines = Lines(tmp_path / "m")
    assert lines.read() == []
    (tmp_path / "m").write_text('{"step": 1}\n{"step": ')
    assert lines.read() == [{"step": 1}] and lines.place[1] == 12
    with open(tmp_path / "m", "a") as file:
        file.write('2}\nnonsense\n[1]\n{"step": true}\n')
    assert lines.read() == [{"step": 1}, {"step": 2}] and lines.broken == 3
    (tmp_path / "new").write_text(
        '{"step": 1}\n{"step": 7}\n{"step": 8}\n{"step": 9}\n{"step": 10}\n' + "\n" * 99
    )
    os.replace(tmp_path / "new", tmp_path / "m")  # as a run does that resumes
    assert [row["step"] for row in lines.read()] == [1, 7, 8, 9, 10]
    (tmp_path / "m").write_text('{"step": 3}\n')
    assert lines.read() == [{"step": 3}] and lines.broken == 0


@pytest.mark.parametrize("name", ["recipe.json", "metrics.jsonl", "samples.jsonl", "checks.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00\n", b"[]\n", b'{"a": {"b": [1]}}\n', None])
def test_damaged_files_are_no_end(tmp_path, name, content):
    run = write_run(tmp_path / "a")
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    assert "a" in shown(run, width=60)


def test_values_of_other_kinds_are_no_end(tmp_path):
    run = write_run(tmp_path / "a")
    add(run, {"kind": "train", "step": 61, "loss": None, "tokens_per_second": 0, "tokens": 5, "R": "x"})
    add(run, {"kind": "eval", "step": 61, "nats_per_token": None, "tokens": 5})
    glance = Watched(run).look()
    assert glance.seconds_left is None and glance.loss is None and glance.rung == ""
    assert "[this" not in shown(run)


def test_lines_that_cannot_be_read_and_failed_checks_are_said(tmp_path):
    run = write_run(tmp_path / "a")
    checks = json.loads((run / "checks.json").read_text())
    bad = [{**checks["final"][0], "id": f"C{i}", "verdict": "fail"} for i in range(9)]
    (run / "checks.json").write_text(json.dumps({**checks, "final": [*checks["final"], *bad]}))
    add(run, "nonsense\n")
    said = shown(run, width=200)
    assert "fail C0 no token sees its future: 0 | 0; expected 0" in said
    assert "and 4 more: kssm report" in said
    assert "metrics.jsonl: 1 lines cannot be read" in Watched(run).look().warnings


def test_names_that_are_the_same_have_the_folder_above(tmp_path):
    runs = [write_run(tmp_path / "runs" / arm / f"seed{seed}") for arm in "ab" for seed in (0, 1)]
    assert find_runs(tmp_path) == runs
    assert "a/seed0" in shown(*runs) and "b/seed1" in shown(*runs)


def test_escapes_in_a_sample_do_not_reach_the_terminal(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "samples.jsonl").write_text('{"step": 1, "prompt": null, "text": "\\u001b[2J[red]x"}\n')
    text = "".join(str(part) for part in describe(Watched(run).look(), 80))
    assert "\x1b" not in text and "\\x1b[2J[red]x" in text


def test_bars():
    assert sparkline([], 9) == "" and sparkline([1, 1], 9) == "▁▁" and sparkline([3, 2, 1, 0], 4) == "█▆▃▁"
    assert sparkline(list(range(1000)), 8) == "▁▂▃▄▅▆▇█"


def test_a_look_that_fails_keeps_what_was_seen(tmp_path):
    def away():
        raise CheckpointError("studio: no route")

    run = Watched(write_run(tmp_path / "a")).look()
    assert look_again(away, [run]) == ([run], "not newer: studio: no route")
    assert look_again(lambda: ([], ""), [run]) == ([], "")


def test_what_is_no_run_is_refused(tmp_path):
    assert "no run in" in refused(kssm("watch", tmp_path, "--once"))
    assert "no run in" in refused(kssm("watch", tmp_path / "absent", "--once"))


def test_runs_elsewhere_are_fetched_without_their_weights(tmp_path, monkeypatch):
    homes = fake_remote.install(tmp_path / "fake", monkeypatch, "studio")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = write_run(homes / "studio" / "runs" / "a")
    shutil.copytree(ROOT / "tests/runs/run-0.1.0/checkpoints", run / "checkpoints")
    assert "a  done  step 60/60" in kssm("watch", "studio:runs", "--once").stdout
    assert "a  done  step 60/60" in kssm("watch", "studio:runs/a", "--once").stdout
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert fetched == {"recipe.json", "metrics.jsonl", "samples.jsonl", "checks.json"}
    assert refused(kssm("watch", "studio:absent", "--once")) == "kssm: studio:absent: no such folder\n"
    unreachable = "kssm: mars:runs: ssh: could not resolve mars; can you reach it with ssh?\n"
    assert refused(kssm("watch", "mars:runs", "--once")) == unreachable


def test_a_run_of_another_machine_goes_as_long_as_it_gives_signs(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "recipe.json").write_text('{"train": {"steps": 100}}')
    owner = this_process()._replace(host="studio", machine="another")
    (run / "run.lock").write_text(json.dumps(owner._asdict()))
    assert Watched(run).look().status == "running"
    for path in run.iterdir():
        os.utime(path, (time.time() - 400,) * 2)
    assert Watched(run).look().status == "stopped"


def test_a_run_that_was_killed_is_stopped_and_its_last_line_waits(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "recipe.json").write_text('{"train": {"steps": 100}}')
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run / "run.lock").write_text(json.dumps(this_process()._replace(pid=gone.pid)._asdict()))
    add(run, '{"kind": "train", "step": 61, "lo')
    glance = Watched(run).look()
    assert (glance.status, glance.step, glance.warnings) == ("stopped", 60, [])


def test_the_time_left_is_by_the_median_of_the_latest_steps(tmp_path):
    run = write_run(tmp_path / "a", steps=60)
    (run / "recipe.json").write_text('{"train": {"steps": 100}}')
    speeds = [1.0] * 50 + [100.0] * 49 + [0.5]  # the first ones are long ago, the last one waited
    row = {"kind": "train", "step": 90, "loss": 2.0, "tokens": 100}
    add(run, *({**row, "tokens_per_second": speed} for speed in speeds))
    assert Watched(run).look().seconds_left == pytest.approx(10 * 1.0)


def watched_live(place, until, then):
    """What `kssm watch` writes on a terminal: until it says something, `then`, until it says the next."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "kssm_mlx", "watch", str(place), "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": "300", "LINES": "30"}
    process = subprocess.Popen(command, env=environment, stdin=side, stdout=side, stderr=side)
    os.close(side)
    said = b""
    try:
        for words, act in zip(until, (then, lambda: process.send_signal(signal.SIGINT)), strict=True):
            while words not in said and (part := os.read(main, 65536)):
                said += part
            act()
        while part := os.read(main, 65536):
            said += part
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(main)
    return process.wait(), said


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("host", ["", "studio:"])
def test_the_live_view_waits_for_a_run(tmp_path, monkeypatch, there, host):
    homes = fake_remote.install(tmp_path / "fake", monkeypatch, "studio")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = homes / "studio" / "runs" if host else tmp_path / "runs"
    if there:
        folder.mkdir()
    place = f"{host}runs" if host else folder
    waits = f"waiting for a run in {place}".encode()
    code, said = watched_live(place, [waits, b"60/60"], lambda: write_run(folder / "a"))
    assert code == 130 and waits in said and b"step 60/60" in said and b"Traceback" not in said


def test_the_live_view_draws_again_and_ends_with_ctrl_c(tmp_path):
    run = write_run(tmp_path / "a")
    more = {"kind": "train", "step": 61, "loss": 2.0}
    code, said = watched_live(run, [b"60/60", b"61/60"], lambda: add(run, more))
    assert code == 130 and b"61/60" in said and b"Traceback" not in said
    assert re.search(rb"kssm: interrupted\r\n$", said)
