"""The first signal asks, the second ends; afterwards everything is as it was."""

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from kssm_mlx.errors import Interrupted
from kssm_mlx.training.parallel.ranks import Ranks
from kssm_mlx.training.signals import SIGNALS, StopRequest, make_interrupted


@pytest.fixture
def heard():
    """Both signals as a foreground process has them; `make test &` begins with SIGINT ignored."""
    before = [(s, signal.signal(s, signal.default_int_handler)) for s in SIGNALS]
    yield
    for s, handler in before:
        signal.signal(s, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_announced(number, capfd):
    before = [signal.getsignal(s) for s in SIGNALS]
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
        assert [signal.getsignal(s) for s in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(s) for s in SIGNALS] == before
    assert f"{number.name}: finishing this step" in capfd.readouterr().err


SECOND = """
import os, signal
from kssm_mlx.training.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite runs in the background
with StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never", flush=True)
"""


def test_the_second_signal_ends_the_process():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "still here\n"


def fail_to_compile(message, number=None):
    """A step that ends with `message`, after a signal where a number is given."""
    with StopRequest():
        if number:
            os.kill(os.getpid(), number)
        raise RuntimeError(message)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_compiler_that_the_signal_ended_too_is_no_bug(number, code, capfd):
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; while a step was compiled") as e:
        fail_to_compile("Could not load C++ shared library a.so: cannot open shared object file", number)
    assert e.value.exit_code == code and "finishing this step" in capfd.readouterr().err


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_other_faults_and_a_compiler_that_fails_by_itself_stay_what_they_are(number, capfd):
    message = "a bug" if number else "Could not load C++ shared library"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        fail_to_compile(message, number)
    assert ("finishing this step" in capfd.readouterr().err) is bool(number)


def test_in_another_thread_it_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def body():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_that_of_the_shell(number, code):
    error = make_interrupted(number, "saved after step 5")
    assert error.exit_code == code
    assert str(error) == f"stopped by {number.name}; saved after step 5"


def test_what_was_ignored_stays_ignored(capfd):
    """As under nohup, which starts a program with SIGINT or SIGHUP ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal is signal.SIGTERM
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert "SIGTERM: finishing this step" in capfd.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("size, action", [(2, signal.SIG_IGN), (1, signal.default_int_handler)])
def test_sigterm_cannot_come_before_the_word_that_a_rank_is_gone(size, action):
    """The launcher sends it to those that are left, between the loop and the message."""
    with pytest.raises(RuntimeError), StopRequest(), Ranks(0, size).ignore_sigterm():
        raise RuntimeError("[ring] Too many send/recv errors. Failing pending tasks...")
    assert signal.getsignal(signal.SIGTERM) == action
