"""SIGKILLs at any moment of the commands that write: nothing is lost, and nothing half-written.

python -m tests.faults.kill_storm [KILLS]      prints JSON: kills and outcomes by command
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kssm_mlx.runs import layout
from kssm_mlx.training.checkpoints.checkpoint import load_latest

STEPS = 12
RECIPE = f"""
[data]
source = "themes:samples=60"
tokenizer = "bytes"

[model]
family = "kssm"
size = "xs"
d_model = 64
n_layers = 1

[train]
steps = {STEPS}
batch_size = 4
context = 32

[eval]
every = 4
tokens = 512
sample_tokens = 0

[save]
every = 3
"""
Files = dict[str, str]  # digests by path
TIMES = ("seconds", "tokens_per_second", "time", "memory")  # what differs between two runs of the same


@dataclass(frozen=True)
class Command:
    """arguments are relative to the folder it works in. outputs: the paths that it writes. first: what stood
    there before, made by these arguments.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    first: tuple[str, ...] = ()

    def again(self, folder: Path) -> list[str] | None:
        """What a person types after the kill; None where everything is there already."""
        if self.name == "train" and layout.is_run(folder / "new"):
            return ["train", "new", "--resume"]
        if self.name in ("export", "convert") and (folder / self.outputs[0]).exists():
            return None  # a folder in use is refused
        return list(self.arguments)


COMMANDS = (
    Command("train", ("train", "recipe.toml", "--out", "new", "--no-verify"), ("new",)),
    Command("export", ("export", "run", "exported", "--no-verify"), ("exported",)),
    Command(
        "convert", ("convert", "model", "converted", "--no-verify", "--text", "text.txt"), ("converted",)
    ),
    Command("data bpe", ("data", "bpe", "file:text.txt", "bpe.json", "--vocab", "270"), ("bpe.json",)),
    Command(
        "verify-weights",
        ("verify-weights", "model", "--quick", "--write-manifest", "manifest.toml"),
        ("manifest.toml",),
    ),
    Command(
        "generate",
        ("generate", "run", "and", "--max-tokens", "40", "--state-out", "state", "--no-verify"),
        ("state",),
        first=("generate", "run", "the", "--max-tokens", "4", "--state-out", "state", "--no-verify"),
    ),
    Command("report", ("report", "run"), ("run/plots", "run/card.md")),
)


class Damage(AssertionError):
    """What a kill left that should not be."""


def kssm(arguments: list[str] | tuple[str, ...], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kssm_mlx", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def finish(arguments: list[str] | tuple[str, ...], folder: Path) -> None:
    process = kssm(arguments, folder)
    said, _ = process.communicate()
    if process.returncode:
        raise Damage(f"kssm {' '.join(arguments)} ended with {process.returncode}: {said.decode()[-500:]}")


def prepare(home: Path) -> Path:
    """Inputs of every command: a run, a model, a text and a recipe."""
    inputs = home / "inputs"
    inputs.mkdir()
    (inputs / "recipe.toml").write_text(RECIPE)
    words = random.Random(0).choices(["the", "phase", "of", "every", "rotor", "and", "field"], k=3000)
    (inputs / "text.txt").write_text(" ".join(words))
    finish(["train", "recipe.toml", "--out", "run", "--no-verify"], inputs)
    finish(["export", "run", "model", "--no-verify"], inputs)
    return inputs


def contents(path: Path) -> Files:
    """Digests of the files of a path, without what is on its way: temporary files have names of their own."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {
        str(f.relative_to(path.parent)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if ".tmp-" not in str(f.relative_to(path.parent))
    }


def _outputs(command: Command, folder: Path) -> Files:
    return {n: d for p in command.outputs for n, d in contents(folder / p).items()}


def losses(run: Path) -> list[dict]:
    """The rows of a run without their times; a row that was cut is the reader's to leave out."""
    rows = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not any(t in k for t in TIMES)}
        for row in rows
        if row["kind"] in ("train", "eval")
    ]


def judge(command: Command, folder: Path, inputs: Path, known: list[Files]) -> str:
    """What is there of the outputs: "absent", "some" or "whole". known: contents that are whole, old and new.

    Raises: Damage.
    """
    ours = {p.split("/")[0] for p in command.outputs if "/" not in p}
    for name in {p.name for p in inputs.iterdir()} - ours:
        before, after = contents(inputs / name), contents(folder / name)
        lost = {n for n in before if after.get(n) != before[n] and not _may_change(command, n)}
        if lost:
            raise Damage(f"{command.name}: its input has changed: {sorted(lost)}")
    if command.name == "train":
        return _judge_run(folder / "new")
    found = _outputs(command, folder)
    if not found:
        return "absent"
    whole = any(found == one for one in known)
    if command.name == "report":  # several files, each of which is whole
        odd = [n for n, d in found.items() if d not in {one.get(n) for one in known}]
    else:
        odd = [] if whole else sorted(found)
    if odd:
        raise Damage(f"{command.name}: half-written: {odd}")
    return "whole" if whole else "some"


def _may_change(command: Command, name: str) -> bool:
    return command.name == "report" and name.startswith(("run/plots", "run/card.md"))


def _judge_run(run: Path) -> str:
    if not layout.is_run(run):
        return "absent"
    found = load_latest(run / layout.CHECKPOINTS)
    if found is not None and found.skipped:
        raise Damage(f"train: checkpoints that cannot be read: {found.skipped}")
    return "some" if found is None or found.snapshot.step < STEPS else "whole"


def kill(command: Command, folder: Path, moment: Callable[[Path, float], bool]) -> bool:
    """Start it and kill it when `moment(folder, seconds)`; False if it had ended by itself."""
    process, began = kssm(command.arguments, folder), time.monotonic()
    while process.poll() is None and not moment(folder, time.monotonic() - began):
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def storm(kills: int, home: Path, seed: int = 0, say: Callable[[str], None] = print) -> dict:
    """Kills in turn over the commands, half of them at any time, half as soon as the command writes.

    Raises: Damage.
    """
    rng, inputs = random.Random(seed), prepare(home)
    outcomes: dict[str, Counter] = {c.name: Counter() for c in COMMANDS}
    undisturbed = {c.name: _undisturbed(c, inputs, home) for c in COMMANDS}
    for number in range(kills):
        command = COMMANDS[number % len(COMMANDS)]
        known, seconds, rows = undisturbed[command.name]
        early = number // len(COMMANDS) % 2 == 0
        while True:
            folder = _begin(command, inputs, home / f"kill-{number}")
            moment = _at(rng.uniform(0.2, 1) * seconds) if early else _writing(folder, rng.expovariate(100))
            if kill(command, folder, moment):
                break
            shutil.rmtree(folder)
        outcome = judge(command, folder, inputs, known)
        outcomes[command.name].update(["kills", outcome, "any time" if early else "while it wrote"])
        again = command.again(folder)
        if again is not None:
            finish(again, folder)
        if judge(command, folder, inputs, known[-1:]) != "whole":
            raise Damage(f"{command.name}: begun again, it is not what it is undisturbed")
        if rows is not None and losses(folder / "new") != rows:
            raise Damage("train: a run that was killed and resumed has other losses")
        say(f"{number + 1}/{kills} {command.name}: {outcome}")
        shutil.rmtree(folder)
    return {"seed": seed, "kills": kills, "damage": 0, "commands": {n: dict(c) for n, c in outcomes.items()}}


def _begin(command: Command, inputs: Path, folder: Path) -> Path:
    shutil.copytree(inputs, folder)
    if command.first:
        finish(command.first, folder)
    return folder


def _undisturbed(command: Command, inputs: Path, home: Path) -> tuple[list[Files], float, list | None]:
    """Contents before and after, the seconds it takes, and the rows of a run."""
    folder = _begin(command, inputs, home / f"whole-{command.name.replace(' ', '-')}")
    before = _outputs(command, folder)
    began = time.monotonic()
    finish(command.arguments, folder)
    seconds = time.monotonic() - began
    states = [*([before] if before else []), _outputs(command, folder)]
    return states, seconds, losses(folder / "new") if command.name == "train" else None


def _at(moment: float) -> Callable[[Path, float], bool]:
    return lambda folder, seconds: seconds >= moment


def _writing(folder: Path, delay: float) -> Callable[[Path, float], bool]:
    """`delay` seconds after the first change under the folder."""
    before, seen = _names(folder), []

    def moment(folder: Path, seconds: float) -> bool:
        if not seen and _names(folder) != before:
            seen.append(seconds)
        return bool(seen) and seconds >= seen[0] + delay

    return moment


def _names(folder: Path) -> set[tuple[str, int]]:
    found = set()
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                found.add((os.path.join(root, name), os.lstat(os.path.join(root, name)).st_mtime_ns))
            except FileNotFoundError:
                continue
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kill-storm-") as home:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
        print(json.dumps(storm(count, Path(home), say=lambda s: print(s, file=sys.stderr)), indent=1))
