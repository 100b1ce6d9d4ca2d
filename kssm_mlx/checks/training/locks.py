"""Does one run hold its folder, on this file system, whoever else wants it at the same moment?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import IO, Any, cast

from kssm_mlx.checks.core.registry import Check, Context, check, verdict

LOCK, RACERS = "kssm_mlx.runs.lock", 8

# One dies with the lock; then eight find it at once, and the winner holds it until all have answered.
DYING = """
import importlib, os, sys
held = importlib.import_module(sys.argv[1]).hold(sys.argv[2])
held.__enter__()
os._exit(0)
"""
RACER = """
import importlib, sys
from kssm_mlx.errors import KssmError
hold = importlib.import_module(sys.argv[1]).hold
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold(sys.argv[2]):
        print("won", flush=True)
        sys.stdin.readline()
except KssmError:
    print("lost", flush=True)
"""


@check("C39", level="P", title="one run holds a folder", source="docs/background/k-ssm.md#the-lock")
def lock_race(ctx: Context) -> Check:
    """In a folder inside the run's, so on its file system, a process takes the lock and dies without letting
    go. Then 8 processes that have waited for one another ask for it at once; counted is how many get it.

    Threshold: exactly 1: with 2, two runs write one folder; with 0, a crash locks a run out for ever.
    Caught: the LockFileManager, which looked and then wrote, took "permission denied" for "dead", and was
    left behind by a kill.
    Sabotage: a lock that looks and then writes; one that the dead keep.
    """
    with tempfile.TemporaryDirectory(prefix=".race-", dir=ctx.run_folder) as folder:
        subprocess.run([sys.executable, "-c", DYING, LOCK, folder], check=True)
        answers = _race(folder)
    won = answers.count("won")
    return verdict(
        "C39",
        won == 1 and answers.count("lost") == RACERS - 1,
        f"{won} of {RACERS} processes got the lock",
        f"1 of {RACERS}",
        "keep runs on a disk of this machine: this file system may not lock files, or the lock is not atomic",
        answers=answers,
    )


def _race(folder: str) -> list[str]:
    """What each of the racers answers, sorted; "" for one that ended without a word."""
    command = [sys.executable, "-c", RACER, LOCK, folder]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for _ in range(RACERS)]
    ends = [(cast(IO[str], racer.stdin), cast(IO[str], racer.stdout)) for racer in racers]  # they are pipes
    for _, out in ends:
        out.readline()
    for into, _ in ends:
        into.write("go\n")
        into.flush()
    answers = [out.readline().strip() for _, out in ends]
    for racer in racers:
        racer.communicate("done\n")
    return sorted(answers)
