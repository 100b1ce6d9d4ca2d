"""docs/reliability.md from what was measured: `python -m tests.faults.document` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from kssm_mlx import files, models
from tests.faults.measure import read
from tests.support.statistics_grid import ELSEWHERE

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
SOURCES = {"hf": "transformers", "state-spaces": "state-spaces", "ssm_cfg": "state-spaces, `ssm_cfg`"}

KILL_COLUMNS = {
    "kills": "kills",
    "at any time": "any time",
    "while it wrote": "while it wrote",
    "left nothing": "absent",
    "a part": "some",
    "all": "whole",
}

HEAD = """# Reliability

Made by `python -m tests.faults.document` from [results/reliability](results/reliability), where `python -m
tests.faults.measure` keeps what it counts. Each section names its command, and the tests that ask the same
of every change.
"""
FUZZ = """Damaged and made-up files, seeded: bits, bytes, words and values of JSON trees in the place of
others. Each input is read, or refused with one line; a fault is a traceback, a dead process, more than 10 s
of CPU, or more memory than four times the file and 200 MB. `python -m tests.faults.measure fuzz INPUTS
SEED`; `tests/faults/test_fuzz.py` tries 60 inputs a reader in `make test`, 3,000 in `make test-all`.
"""
KILLS = """SIGKILL to commands that write, half of them at any time, half as soon as the first file
changes. Damage is an input that has changed, an output that is neither the old nor the new one, a
checkpoint that cannot be read, or losses of a resumed run that are not those of one that was left alone.
`python -m tests.faults.measure kills`; `tests/faults/test_kill_storm.py` in `make test-all`.
"""
TEXT = """Random texts and random lists of ids, token by token, against the decoding of all ids at once: in
one go, cut in two with a saved state between, and behind a prompt. How many differ. `python -m
tests.faults.measure text`; `tests/data/tokenizers/test_streaming.py`, with 200 of each in `make test`.
"""
STATISTICS = """Each public statistic of `kssm_mlx/metrics` against scipy, or against its definition
written out: samples of 2 to 300 values, near zero, far from it, with heavy tails, all equal, equal but for
their last bit, and none. An error is relative. `python -m tests.faults.measure statistics`;
`tests/metrics/test_against_scipy.py` in `make test`.
"""
LOADERS = """What becomes of the keys of others' configurations, and how many names of tensors are known,
counted in `kssm_mlx/models/families`. "one value": the key is read, and refused with any value but that of
the architecture as it is implemented. A key in no table, and a tensor of no known name, is refused by its
name (`tests/weights/test_config_keys.py`, `tests/weights/audit/test_inspect.py`). Our own exports have the
fields of their configuration, all read.
"""


def render() -> str:
    sections = [_fuzz(), _kills(), _text(), _statistics(), _loaders()]
    return "\n".join([HEAD, *("\n".join(section) + "\n" for section in sections)])


def _fuzz() -> Iterator[str]:
    rows = sorted(read("fuzz"), key=lambda row: (row["reader"], row["seed"]))
    faults = [row["fault"] for row in rows if row["fault"]]
    yield from ("## Hostile files", "", FUZZ)
    readers = len({row["reader"] for row in rows})
    yield f"**{_sum(rows, 'inputs'):,} inputs to {readers} readers: {len(faults)} faults.**"
    yield from ("", *_table("reader", "inputs", "refused", "seeds", "slowest, s of CPU", "memory, MB"))
    for name, group in groupby(rows, key=lambda row: row["reader"]):
        runs = list(group)
        yield _line(
            name,
            f"{_sum(runs, 'inputs'):,}",
            f"{_sum(runs, 'refused'):,}",
            ", ".join(str(row["seed"]) for row in runs),
            max(row.get("slowest_seconds", 0) for row in runs),
            max(row.get("memory_mb", 0) for row in runs),
        )
    yield from (f"\nFault: {fault}" for fault in faults)


def _kills() -> Iterator[str]:
    found = read("kills")
    yield from ("## Kills", "", KILLS)
    yield f"**{found['kills']} kills, seed {found['seed']}: {found['damage']} damaged.**"
    yield from (
        "",
        *_table("command", "kills", "at any time", "while it wrote", "left nothing", "some", "all"),
    )
    for name, counts in found["commands"].items():
        yield _line(f"`kssm {name}`", *(counts.get(key, 0) for key in KILL_COLUMNS.values()))


def _text() -> Iterator[str]:
    yield from ("## Text as it comes", "", TEXT)
    rows = read("text")
    kinds = list(rows[0]["differ"])
    yield from _table("tokenizer", "of each", *kinds)
    for row in rows:
        yield _line(row["kind"], f"{row['times']:,}", *(row["differ"][kind] for kind in kinds))


def _statistics() -> Iterator[str]:
    rows = read("statistics")
    yield from ("## Statistics", "", STATISTICS)
    yield from _table("statistic", "cases", "largest error")
    yield from (_line(f"`{r['statistic']}`", r["cases"], f"{r['largest_relative_error']:.0e}") for r in rows)
    yield from (_line(f"`{name}`", "", f"`{test}`") for name, test in ELSEWHERE.items())


def _loaders() -> Iterator[str]:
    yield from ("## Models of others", "", LOADERS)
    yield from _table(
        "family", "source", "keys read", "one value", "ignored, with a reason", "names of tensors"
    )
    for name, family in models.FAMILIES.items():
        for source in dict.fromkeys((*family.config_keys, *family.key_maps)):
            yield _line(name, SOURCES.get(source, "BlinkDL"), *_counts(family, source))


def _counts(family: models.Family, source: str) -> Iterator[object]:
    keys, names = family.config_keys.get(source), family.key_maps.get(source)
    yield from (len(keys.used), len(keys.only), len(keys.ignored)) if keys else ("no configuration", "", "")
    yield len(names) if names else ""


def _sum(rows: Iterable[dict[str, Any]], key: str) -> int:
    return sum(row.get(key, 0) for row in rows)


def _table(*columns: str) -> list[str]:
    return [_line(*columns), _line(*["---"] * len(columns))]


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    files.replace(DOCUMENT, render())
