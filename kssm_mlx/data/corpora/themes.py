"""Short samples on sixteen themes, made from a seed: our own sentences. Phase-Mamba's set was drawn before
its seed was set, and nobody can make it again.

A sample is one to three sentences of one theme, 8 to 46 words; `themes.toml` holds the phrases. No passage of
64 bytes is in two samples, so samples held out by any split are new text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from kssm_mlx.errors import ConfigError, nearest

SAMPLES = 800
WORDS = (8, 46)  # of a sample, both included
PASSAGE = 64  # bytes; what check C15 counts as shared
PATTERNS = (
    "{when}, {who} {act} {where}.",
    "{where}, {who} {act}, {reason}.",
    "{claim}, {reason}.",
    "{who} {act} {when}.",
    "{when}, {claim}.",
)
_SLOT = re.compile(r"\{(\w+)\}")
_MISSES = 2000  # refused draws in a row after which there is nothing left to say

Phrases = Mapping[str, Mapping[str, tuple[str, ...]]]


class Sample(NamedTuple):
    theme: str
    text: str


@cache
def load_phrases() -> Phrases:
    """Theme -> slot -> the phrases that fit it."""
    table = tomllib.loads((files("kssm_mlx.data") / "themes.toml").read_text("utf-8"))
    return {theme: {slot: tuple(values) for slot, values in slots.items()} for theme, slots in table.items()}


def themed_samples(seed: int = 0, samples: int = SAMPLES) -> list[Sample]:
    """`samples` distinct samples, the themes in turn, in an order and wording that `seed` alone decides.

    Raises: ConfigError for more samples than the phrases can make without repeating a passage.
    """
    if samples < 1 or seed < 0:
        raise ConfigError(f"samples is {samples} and seed {seed}; expected at least 1 and at least 0")
    random = np.random.Generator(np.random.PCG64(seed))
    themes, seen, made = load_phrases(), set(), []
    while len(made) < samples:
        for theme in random.permutation(sorted(themes))[: samples - len(made)]:
            text = _draw_unseen(random, themes[theme], seen)
            if text is None:
                raise ConfigError(
                    f"{samples} samples cannot be made without repeating {PASSAGE} bytes: {theme!r} has "
                    f"nothing new after {len(made)}; ask for fewer"
                )
            made.append(Sample(str(theme), text))
    return made


def parse_options(text: str) -> dict[str, int]:
    """ "seed=3,samples=900" as the arguments of `themed_samples`. Raises: ConfigError."""
    options: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in ("seed", "samples") or not value.isdecimal():
            hint = nearest(key, ("seed", "samples"))
            raise ConfigError(f"themes has {part!r}; expected themes:seed=0,samples={SAMPLES}{hint}")
        options[key] = int(value)
    return options


def passages(text: str) -> set[bytes]:
    """Every run of `PASSAGE` bytes; of a shorter text the text itself."""
    raw = text.encode()
    return {raw[i : i + PASSAGE] for i in range(max(1, len(raw) - PASSAGE + 1))}


def _draw_unseen(
    random: np.random.Generator, slots: Mapping[str, tuple[str, ...]], seen: set[bytes]
) -> str | None:
    """A sample with nothing in `seen`, to which its passages are added; None after too many misses."""
    for _ in range(_MISSES):
        text = _draw(random, slots)
        own = passages(text)
        if WORDS[0] <= len(text.split()) <= WORDS[1] and own.isdisjoint(seen):
            seen |= own
            return text
    return None


def _draw(random: np.random.Generator, slots: Mapping[str, tuple[str, ...]]) -> str:
    """One to three sentences of different patterns, no phrase twice."""
    chosen = random.permutation(len(PATTERNS))[: random.integers(1, 4)]
    left = {slot: [str(phrase) for phrase in random.permutation(values)] for slot, values in slots.items()}

    def sentence(pattern: str) -> str:
        text = _SLOT.sub(lambda slot: left[slot[1]].pop(), pattern)
        return text[:1].upper() + text[1:]

    return " ".join(sentence(PATTERNS[i]) for i in chosen)
