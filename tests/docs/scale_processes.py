"""The section "Several processes" of docs/scale.md; as a module it measures and writes it anew.

Takes some minutes. What was measured here is said to be; what is on paper too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kssm_mlx import environment, files
from kssm_mlx.bench.parallel import Link, predict_all_reduce
from tests.docs.scale import PAGE
from tests.support.launched import launch

RECIPE, COUNTS = "groups", (2, 4)
KSSM = str(Path(sys.executable).with_name("kssm"))
TITLE = "## Several processes"
HEAD = f"""{TITLE}

```
mlx.launch -n 2 --backend ring -- kssm train default         # two processes on this machine
mlx.launch --hostfile hosts.json -- kssm train default       # one on each machine of a list
mlx.launch --hostfile hosts.json -- kssm train default --out runs/default --resume
```

MLX starts and connects the processes (`mlx.launch`, `mlx.distributed`: ring, JACCL, MPI or NCCL); its
documentation has the hosts file, which `mlx.distributed_config` writes for Macs on Thunderbolt. Here only
the ring on one machine was tried. The words behind `--` must mean the same on each machine: kssm on the
path, the recipe and its text under the same names.

- **Rows**: of the batch of a step, which (seed, step) gives, each process takes its share.
  `train.batch_size` is that of all; processes that do not divide it are refused. Process for process it is
  what `train.accumulation` is piece for piece: two processes take, bit for bit, the step that one takes in
  two pieces, but for the norm of the gradient, whose squares are summed in the order in which they lie in
  memory. Against one process with the whole batch at once, losses differ by rounding ([the
  bound](../tests/training/parallel/test_ranks.py)). Noise is drawn as in so many pieces.
- **Messages**: gradients, nats and observables of a step are summed in one message for each type, after the
  backward pass: one message cannot begin before the last gradient is there. Held-out windows are shared
  out, and scored as by one.
- **Rank 0** alone checks, says and writes, in the folder that one process would write, which one process,
  or another number of them, can go on from. A machine that does not see the folder prepares token files of
  its own, whose digests must be rank 0's; state comes from rank 0. Recipe, data, first parameters and
  version must be alike, or rank 0 names what is not, and all end with exit code 2. At every checkpoint
  parameters are compared: machines of two kinds may round differently, and then the run ends in place of
  drifting.
- **Checks are not shared out.** Rank 0 asks all of them, the others wait for its verdict, and a failed check
  ends every process with exit code 1. They take time once and not in every step: of `groups` 5 s before step
  1, 7 s at the end and 0.1 s at an evaluation, together 12 s where a step is 0.25 s (once by hand, with other
  work on the machine, as what follows; `kssm verify RECIPE` has the seconds of each check). Two processes on
  the two cores of this machine that took every other check before step 1 needed 9.3, 8.2 and 5.8 s, one with
  all of them in turn 8.9, 7.8 and 7.8 s: what one leaves out, the other's threads lacked. Several machines
  would save some seconds of a run, and a verdict would rest on what each of them has.
- **A process that dies** ends all: MLX's ring tells its neighbours within a second, and what it leaves
  waiting ends some seconds after the launcher's SIGTERM. The last checkpoint stays. Nobody notices a
  machine that freezes, or loses its network without closing it, before ssh does: set `ServerAliveInterval`
  for the launcher's ssh. The launcher's own exit code is 0 whatever happens (MLX 0.32.4); it says what each
  process ended with.
- **Not here**: memory is not divided, each process holds the whole model and its optimizer. Models that
  keep buffers, a graft with a memory of its means, train in one process.

"""
PAPER = """### On paper

An all-reduce of S bytes among N processes on a ring takes 2 (N - 1) latency + 2 (N - 1) / N · S / rate, S
being 4 bytes for each trained parameter; a step takes that and 6 · parameters · tokens / N / speed, so that
parameters cancel but for the latency. **Nothing below was measured**: published rates of links (Thunderbolt
5: 80 Gbit/s, Thunderbolt 4: 40, 10 Gbit Ethernet), of which an application gets less, 50 µs for the latency
and 10 TFLOP/s for a Mac that trains, both assumed; 130 million parameters. Share of N times the speed of
one:

"""
# bit/s as published; the assumptions of the text above.
LINKS = {"Thunderbolt 5": 80e9, "Thunderbolt 4": 40e9, "10 Gbit Ethernet": 10e9}
LATENCY, SPEED, PARAMETERS = 50e-6, 10e12, 130e6
TOKENS = (8192, 32768, 131072)  # in a step of all processes together


def measure() -> list[dict[str, Any]]:
    """`kssm bench --together` with each number of processes."""
    found = []
    for count in COUNTS:
        done = launch(count, [KSSM, "bench", "--together", RECIPE])
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(found[-1], flush=True)
    return found


def render(measured: Iterable[dict[str, Any]]) -> str:
    """The section, with a line at its end."""
    return f"{HEAD}{_measured(list(measured))}\n{PAPER}{paper()}\n"


def _measured(rows: list[dict[str, Any]]) -> str:
    name, cores = environment.device().get("device_name"), environment.facts()["cores"]
    lines = [
        "### Measured",
        "",
        f"`mlx.launch -n N --backend ring -- kssm bench --together {RECIPE}` on {name}, {cores}",
        "cores for all processes: loopback says what is sent and how far the formula holds, not what",
        "machines gain.",
        "Latency and rate are those of messages of 256 bytes and 16 MB; predicted is what the formula makes",
        "of them for the message of the step, which was then timed alone. Four processes on two cores wait",
        "for a core as well, which is not in the formula. In a step each waits for the slowest, too.",
        "",
        "| processes | parameters | bytes summed | sent by each | latency | rate | alone, predicted "
        "| alone, measured | waiting in a step | step | share of it |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        link = Link(row["latency"], row["rate"])
        predicted = predict_all_reduce(row["message"], row["processes"], link)
        times = (predicted, row["message_alone"], row["waiting"], row["seconds"])
        lines.append(
            f"| {row['processes']} | {row['parameters']:,} | {row['message']:,.0f} | {row['sent']:,.0f} | "
            f"{row['latency'] * 1e3:.2g} ms | {row['rate'] / 1e6:,.0f} MB/s | "
            f"{' | '.join(f'{t * 1e3:.0f} ms' for t in times)} | {row['share']:.0%} |"
        )
    return "\n".join([*lines, ""])


def paper() -> str:
    """Shares of linear scaling."""
    lines = ["| link | tokens of a step | 2 | 4 | 8 |", "|---|---|---|---|---|"]
    for name, bits in LINKS.items():
        for tokens in TOKENS:
            shares = [_efficiency(tokens, count, Link(LATENCY, bits / 8)) for count in (2, 4, 8)]
            lines.append(f"| {name} | {tokens:,} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


def _efficiency(tokens: int, count: int, link: Link) -> float:
    share = 6 * PARAMETERS * tokens / SPEED / count
    return share / (share + predict_all_reduce(4 * PARAMETERS, count, link))


def replace_section(text: str, section: str) -> str:
    """The page with this section before that on other machines."""
    text = re.sub(rf"^{TITLE}\n.*?(?=^## Other machines$)", "", text, flags=re.S | re.M)
    return text.replace("## Other machines\n", f"{section}\n## Other machines\n", 1)


def main() -> None:
    files.replace(PAGE, replace_section(PAGE.read_text("utf-8"), render(measure())))


if __name__ == "__main__":
    main()
