"""SIGINT and SIGTERM: the first asks the run to end at a step boundary, the second ends the process at once.

After the first one the default action is put back, so the second is the kernel's: it works in the middle of a
long computation too, where a Python handler would wait. Nothing saved is lost by it, since checkpoints are
written under another name and renamed when they are whole.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from kssm_mlx.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNCOMPILED = ("Could not load C++ shared library", "[Compile::eval_cpu]")  # how MLX says it
_SHOW_CURSOR = (
    "\x1b[?25h"  # a progress bar hides it, and a process killed by the second signal cannot restore it
)


class StopRequest:
    """`with StopRequest() as stop:` catches the first signal; `stop.signal` is then its number, else None.

    Outside the main thread Python delivers no signals, so there it catches nothing. says: whether to
    tell of it.
    """

    def __init__(self, says: bool = True) -> None:
        self._says = says
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # What was ignored when the run began (nohup) stays ignored.
            caught = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
            self._previous = {s: signal.signal(s, self._handle_first) for s in caught}
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        del kind, traceback
        for s, handler in self._previous.items():
            # Ignored meanwhile by a process that is to end with a message, whatever its launcher does.
            if signal.getsignal(s) != signal.SIG_IGN:
                signal.signal(s, handler)
        # Ctrl-C ends g++ as well, which compiles the kernels of a first step, and then that step fails.
        if self.signal and isinstance(error, RuntimeError) and str(error).startswith(UNCOMPILED):
            lost = "while a step was compiled, which is not taken; what was saved before is there"
            raise make_interrupted(self.signal, lost) from None

    @staticmethod
    def of(number: int) -> signal.Signals | None:
        """The signal of a number; None for 0."""
        return signal.Signals(number) if number else None

    def _handle_first(self, number: int, frame) -> None:
        del frame
        self.signal = signal.Signals(number)
        for s in self._previous:
            signal.signal(s, signal.SIG_DFL)
        if not self._says:
            return
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        text = f"{cursor}\n{self.signal.name}: finishing this step, then saving (once more to stop at once)\n"
        os.write(2, text.encode())  # print may not be entered again while it is interrupted


def make_interrupted(by: signal.Signals, saved: str) -> Interrupted:
    """The error that ends a run after a signal; its exit code is the shell's convention, 128 + signal."""
    error = Interrupted(f"stopped by {by.name}; {saved}")
    error.exit_code = 128 + by
    return error
