"""What the values in the files of a run are, as far as somebody reads them; one that is not is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kssm_mlx.errors import CheckpointError, quote

Kinds = Mapping[str, tuple[type, ...]]
NUMBER = (int, float, type(None))
TABLE, TEXT = (dict,), (str,)

RECIPE = {
    **dict.fromkeys(("about", "data", "model", "configuration", "train", "eval"), TABLE),
    "host_digest": (str, type(None)),
}
COUNT = (int,)
TRAIN, EVAL = {"context": COUNT, "seed": COUNT, "steps": COUNT}, {"tokens": COUNT}
ABOUT = {"question": TEXT, "expected": (dict, type(None))}
EXPECTED = {"metric": TEXT, "value": NUMBER, "tolerance": NUMBER}
MANIFEST = {
    **dict.fromkeys(("data", "environment", "waivers"), TABLE),
    "parameters": NUMBER,
    "command": (str, type(None)),
}
ENVIRONMENT: Kinds = dict.fromkeys(("device", "packages", "switches"), (dict, type(None)))
VERDICT = {**dict.fromkeys(("id", "title", "level", "verdict", "got", "expected"), TEXT), "numbers": TABLE}
MEASURED = {"ladder": TABLE, "context_gain": NUMBER, "context_gain_se": NUMBER}
RUNGS: Kinds = dict.fromkeys(("uniform", "unigram", "bigram", "trigram", "position_bigram"), NUMBER)
SAMPLE = {"text": TEXT, "prompt": TEXT, "temperature": NUMBER}
ROW = {
    **dict.fromkeys(("nats_per_token", "se", "bits_per_byte", "perplexity", "perplexity_se"), NUMBER),
    **dict.fromkeys(("accuracy", "ceiling", "floor", "skill", "windows", "tokens", "loss"), NUMBER),
    **dict.fromkeys(("kind", "tone", "action"), TEXT),
}


def require_kinds(table: Mapping[str, Any], kinds: Kinds, where: object, *, all: bool = False) -> None:
    """all: whether every key must be there.

    Raises: CheckpointError naming a value that is of another kind than `kinds` says, or is missing.
    """
    for key, kind in kinds.items():
        if key not in table:
            if all:
                raise CheckpointError(f"{where} has no {key!r}; restore it from a copy of the run")
        elif not isinstance(table[key], kind) or (isinstance(table[key], bool) and bool not in kind):
            names = " or ".join(_NAMES[k] for k in kind if k is not float)
            raise CheckpointError(
                f"{where} has {key} = {quote(table[key], 60)}; expected {names}; restore it from a copy"
            )


_NAMES = {int: "a number", dict: "a table", str: "a text", type(None): "null"}
