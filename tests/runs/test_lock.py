"""Exactly one process holds a run folder, and a dead one does not."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs import lock

ROOT = Path(__file__).parents[2]


def forge(folder, **changes) -> Path:
    """A lock file as somebody else might have left it."""
    path = folder / lock.NAME
    path.write_text(json.dumps({**lock.this_process()._asdict(), **changes}))
    return path


def assert_taken_over(folder):
    with lock.hold(folder):
        assert lock.is_held_here(folder)
    assert not (folder / lock.NAME).exists()


def test_holds_and_lets_go(tmp_path):
    with lock.hold(tmp_path / "run") as path:
        assert json.loads(path.read_text()) == {
            "pid": os.getpid(),
            "start": lock.start_time(os.getpid()),
            "host": socket.gethostname(),
            "machine": lock.machine_id(),
        }
        assert lock.is_held_here(tmp_path / "run")
    assert not path.exists() and not lock.is_held_here(tmp_path / "run")


def test_lets_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path):
        1 / 0  # noqa: B018
    assert not (tmp_path / lock.NAME).exists()


def test_a_folder_in_which_nothing_was_written_goes_with_it(tmp_path):
    """As after a slip in the path of a text. One that was there stays, and one that something is in."""
    with lock.hold(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert [*(tmp_path / "new").iterdir()] == []
    (tmp_path / "there").mkdir()
    for folder, file in ((tmp_path / "there", None), (tmp_path / "used", "metrics.jsonl")):
        with lock.hold(folder):
            if file:
                (folder / file).touch()
        assert folder.is_dir()
    with lock.hold(tmp_path / "gone"):
        shutil.rmtree(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_who_waits_for_a_guard_that_is_deleted_takes_the_new_one(tmp_path):
    """Else two would hold a folder: one by the old file, one by the new."""
    path = tmp_path / "run" / lock.NAME
    entered, done = threading.Event(), []

    def wait():
        entered.set()
        with lock._one_at_a_time(path):
            done.append(lock._guard_of(path).exists())

    other = threading.Thread(target=wait)
    with lock._one_at_a_time(path):
        other.start()
        entered.wait()
        time.sleep(0.1)  # for it to open the file and wait; without, the test passes all the same
        lock._guard_of(path).unlink()
        path.parent.rmdir()
    other.join()
    assert done == [True]


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path):
    with lock.hold(tmp_path):
        with (
            pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on .* running"),
            lock.hold(tmp_path),
        ):
            pass
        assert lock.is_held_here(tmp_path)


def test_a_dead_holder_is_succeeded(tmp_path, dead_pid):
    forge(tmp_path, pid=dead_pid)
    assert_taken_over(tmp_path)


def test_a_reused_process_id_is_not_the_holder(tmp_path):
    forge(tmp_path, start="another moment")
    assert_taken_over(tmp_path)


def test_a_holder_that_died_before_it_wrote_its_name_is_succeeded(tmp_path):
    (tmp_path / lock.NAME).write_text("")
    assert_taken_over(tmp_path)


def test_another_host_is_refused_and_told_what_to_do(tmp_path, dead_pid):
    path = forge(tmp_path, pid=dead_pid, host="elsewhere")
    with pytest.raises(CheckpointError) as e, lock.hold(tmp_path):
        pass
    assert "on elsewhere" in str(e.value) and f"delete {path}" in str(e.value)


def test_a_mac_that_changed_its_name_with_the_network_is_still_this_one(tmp_path, monkeypatch, dead_pid):
    monkeypatch.setattr(lock.sys, "platform", "darwin")
    monkeypatch.setattr(lock, "machine_id", lambda: "A1B2")
    forge(tmp_path, host="mac.cafe.example")
    with pytest.raises(CheckpointError, match="which is running"), lock.hold(tmp_path):
        pass
    forge(tmp_path, host="mac.cafe.example", pid=dead_pid)
    assert_taken_over(tmp_path)


@pytest.mark.linux
def test_a_clone_of_this_machine_under_another_name_is_another(tmp_path, monkeypatch, dead_pid):
    monkeypatch.setattr(lock, "machine_id", lambda: "image")
    forge(tmp_path, host="clone", pid=dead_pid)
    with pytest.raises(CheckpointError, match="cannot see whether"), lock.hold(tmp_path):
        pass


def test_another_machine_of_the_same_name_is_another(tmp_path, monkeypatch, dead_pid):
    monkeypatch.setattr(lock, "machine_id", lambda: "ours")
    forge(tmp_path, machine="theirs", pid=dead_pid)
    with pytest.raises(CheckpointError, match="cannot see whether"), lock.hold(tmp_path):
        pass


def test_a_lock_of_a_version_without_machines_is_read(tmp_path, dead_pid):
    path = forge(tmp_path, pid=dead_pid)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "machine"}))
    assert_taken_over(tmp_path)


def test_the_machine_of_a_mac_is_its_hardware(monkeypatch):
    said = '  "IOPlatformSerialNumber" = "X"\n      "IOPlatformUUID" = "5D0C-77"\n'
    monkeypatch.setattr(lock.sys, "platform", "darwin")
    monkeypatch.setattr(lock.subprocess, "run", lambda asked, **_: SimpleNamespace(stdout=said))
    assert lock.machine_id.__wrapped__() == "5D0C-77"


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps on this machine")
def test_a_start_time_is_the_same_text_from_every_time_zone(tmp_path, monkeypatch):
    """Without /proc ps prints local time: a lock seen from another zone was taken over."""
    monkeypatch.setattr(lock, "PROC", tmp_path)
    said = set()
    for zone in ("Asia/Tokyo", "America/New_York", "XYZ-7"):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        said.add(lock.start_time(os.getpid()))
    assert len(said) == 1 and said != {""}


def test_not_being_allowed_to_signal_means_alive(tmp_path, monkeypatch):
    def forbidden(pid, signal):
        raise PermissionError

    forge(tmp_path)
    monkeypatch.setattr(os, "kill", forbidden)
    with pytest.raises(CheckpointError, match="running"), lock.hold(tmp_path):
        pass


def test_an_unknown_start_time_is_no_proof_of_death(tmp_path, monkeypatch):
    forge(tmp_path, pid=os.getppid(), start="known then")
    monkeypatch.setattr(lock, "start_time", lambda pid: "")
    with pytest.raises(CheckpointError, match="running"), lock.hold(tmp_path):
        pass


def test_a_lock_that_was_taken_from_us_is_not_deleted(tmp_path):
    with lock.hold(tmp_path):
        path = forge(tmp_path, pid=os.getppid(), start=lock.start_time(os.getppid()))
    assert path.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"cannot write run.lock in .*Not a directory"),
        lock.hold(tmp_path / "file" / "run"),
    ):
        pass


def test_start_times_tell_processes_apart():
    first = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mine, others = lock.start_time(os.getpid()), lock.start_time(first.pid)
        assert mine == lock.start_time(os.getpid()) and mine and others
    finally:
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # ended, but still to be reaped
        unreaped = lock.start_time(first.pid)
        first.wait()
    assert unreaped == "ended"
    assert not lock.is_alive(first.pid)


RACER = """
import sys, time
from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs import lock

judge = lock._refuse_if_held

def slow_to_act(path):  # all would judge the stale lock before one of them has taken it over
    judge(path)
    time.sleep(0.2)

lock._refuse_if_held = slow_to_act
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock.hold(sys.argv[1]):
        print("won", flush=True)
        sys.stdin.readline()
except CheckpointError:
    print("lost", flush=True)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_eight_that_start_together_one_wins(tmp_path, dead_pid, stale):
    """C39. The winner holds the lock until all have answered, so no loser could have come after it."""
    if stale:
        forge(tmp_path, pid=dead_pid)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(8)
    ]
    assert all(r.stdout.readline() == "ready\n" for r in racers)
    for r in racers:
        r.stdin.write("go\n")
        r.stdin.flush()
    answers = [r.stdout.readline().strip() for r in racers]
    for r in racers:
        r.communicate("done\n")
    assert sorted(answers) == ["lost"] * 7 + ["won"]
    assert not (tmp_path / lock.NAME).exists()


@pytest.mark.parametrize(
    "content",
    [
        '{"pid": "x", "start": "", "host": "h"}',
        '{"pid": -1, "start": "", "host": "h"}',
        '{"pid": true, "start": "", "host": "h"}',
        '{"pid": 1, "start": [], "host": "h"}',
        "[" * 5000,
        "null",
        b"\xff",
    ],
)
def test_a_lock_that_nobody_can_have_written_is_no_lock(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    with lock.hold(tmp_path):
        assert lock.is_held_here(tmp_path)
