"""Waiting for other processes, and ending when they will not answer.

MLX's ring raises in the process that waits when a neighbour goes, mostly: a message of several parts may find
the thread gone that would have carried the next one, and then it waits for ever in C++, where no Python
handler of a signal runs (0.32.4: one of four killed in an all-reduce left two so). mlx.launch sends SIGTERM
to those that are left, so a thread looks for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

PATIENCE = 5.0  # seconds that a message may take after SIGTERM


@dataclass
class Waits:
    """since: when this process began to wait for the others, by `time.monotonic`; None while it computes.
    messages, bytes, seconds: of all that it has received so far.
    """

    since: float | None = None
    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def receive(self, message: mx.array) -> mx.array:
        """What the others have to send for it, evaluated."""
        self.since = began = time.monotonic()
        try:
            mx.eval(message)
        finally:
            self.since = None
        self.messages, self.bytes = self.messages + 1, self.bytes + message.nbytes
        self.seconds += time.monotonic() - began
        return message


@contextlib.contextmanager
def ended_by_sigterm(waits: Waits, say: Callable[[], None]) -> Iterator[None]:
    """During the block the process ends with exit code 1, after `say`, if it waits when SIGTERM comes or
    later, for more than `PATIENCE`. Whoever handles the signal at a step boundary is left to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    told, telling = socket.socketpair()
    telling.setblocking(False)
    before = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(told, over, waits, say), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        telling.close()
        watching.join()
        told.close()


def _watch(told: socket.socket, over: threading.Event, waits: Waits, say: Callable[[], None]) -> None:
    """Read the numbers of signals, which arrive while the main thread is in C++."""
    while number := told.recv(1):
        if number[0] == signal.SIGTERM:
            _end_if_stuck(over, waits, say)


def _end_if_stuck(over: threading.Event, waits: Waits, say: Callable[[], None]) -> None:
    began = time.monotonic()
    while not over.wait(0.1):
        since = waits.since
        if since is not None and time.monotonic() - max(since, began) > PATIENCE:
            say()
            os._exit(1)
