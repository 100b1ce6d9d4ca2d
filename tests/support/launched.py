"""Commands in several processes that MLX's launcher connects on this machine."""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(sys.executable).with_name("mlx.launch")


def launch(count: int, command: list[str]) -> subprocess.CompletedProcess:
    """`command` in `count` processes of the ring backend. The launcher's exit code is 0 whatever they do; of
    those that fail it says "Node with rank 1 exited with code 2".
    """
    arguments = ["-n", str(count), "--backend", "ring", "--starting-port", str(free_ports(count)), "--"]
    return subprocess.run(
        [str(LAUNCHER), *arguments, *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        # Below those that the system gives away; not of the seed that every worker of a suite has.
        start = random.SystemRandom().randrange(20000, 32000, 16)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, each in enumerate(sockets):
                each.bind(("127.0.0.1", start + i))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return start


# What MLX adds, in the pieces in which it writes: those of several threads and of the launcher get between
# each other, as in "[ring] Socket 3", a warning of the launcher's, " was closed by the peer".
ADDED = re.compile(
    r"\x1b\[33m\[WARN\]| ?Node with rank \d+ exited with code -?\d+( ?\x1b\[0m ?\n?)?|\x1b\[0m ?\n?"
    r"|\[ring\] ?|(Receiving from socket|Sending to socket|Socket) \d+| was closed by the peer"
    r"| failed with errno \d+|Too many send/recv errors\. Failing pending tasks\.\.\."
)


def said(done: subprocess.CompletedProcess) -> list[str]:
    """What the processes wrote to stderr, without what MLX's ring and launcher add: it ends those that are
    left by SIGTERM, which may find them in a step.
    """
    lines = ADDED.sub("", done.stderr).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("SIGTERM: finishing")]
