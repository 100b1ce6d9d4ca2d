"""Changes of a good file, of bytes, of words and of a JSON tree: damage and malice, seeded."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

# What is put in the place of a value of JSON or TOML.
VALUES = [
    *(
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "NaN",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[]]",
        '{"":[]}',
        "1.5",
        '"\\ud800"',
    ),
    *(
        "9" * 50,
        "9" * 5000,
        "[" * 300,
        '{"a":' * 300,
        str(1 << 31),
        str(1 << 63),
        str(1 << 64),
        '"' + "z" * 3000,
    ),
    *("'''", "[[a]]", "a.b.c", "1979-05-27", "0x", "inf", "\u202e", "\x00", "\x1b[31m", "#"),
]
BYTES = [
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\xef\xbb\xbf",
    b"\n",
    b"(",
    b"]",
    b")",
    b"}",
    b"t",
    b"u",
    b".",
    b"h\x00",
    b"\x85",
]


def mutate(good: bytes, rng: random.Random, text: bool) -> bytes:
    """One or several changes, of bytes or of words."""
    if text and rng.random() < 0.4 and (changed := _of_tree(good, rng)):
        return changed
    raw = good
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        raw = _of_words(raw, rng) if text and rng.random() < 0.6 else _of_bytes(raw, rng)
    return raw


def _of_bytes(raw: bytes, rng: random.Random) -> bytes:
    size = len(raw) + 1
    at = min(
        rng.choice(
            [rng.randrange(size), rng.randrange(min(size, 400)), size - 1 - rng.randrange(min(size, 400))]
        ),
        len(raw),
    )
    length = rng.choice([0, 1, 1, 4, 50])
    match rng.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            other = rng.randrange(size)
            return raw[:at] + raw[other : other + rng.randrange(200)] + raw[at:]
        case 2:
            return raw[:at] + bytes(rng.randrange(256) for _ in range(length)) + raw[at + length :]
        case 3:
            return raw[:at] + rng.choice(BYTES) * rng.choice([1, 1, 3, 2000]) + raw[at + length :]
        case _:
            return (
                raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :] if at < len(raw) else raw
            )


# What is put in the place of a value of a JSON tree.
OBJECTS = [
    *(None, True, False, 0, -1, 1, 2, 7, 1 << 31, 1 << 63, 1 << 70, 1.5, -0.0, float("inf"), float("nan")),
    *("", "x", "\ud800", "\x00", "z" * 3000, "__float__", [], {}, [[]], [None], {"": None}, [1] * 200),
    *({"__float__": "Infinity"}, {"__float__": "x"}, {"__float__": []}, "1", "silu", -(1 << 40), [1, 2]),
]


def _of_tree(raw: bytes, rng: random.Random) -> bytes | None:
    """Some values of a JSON text in the place of others; None for what is no JSON."""
    try:
        tree = json.loads(raw)
    except ValueError:
        return None
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places[:60] if rng.random() < 0.7 else places)
        match rng.randrange(4):
            case 0 | 1:
                parent[key] = copy.deepcopy(rng.choice(OBJECTS))
            case 2:
                other, there = rng.choice(places)
                parent[key] = json.loads(json.dumps(other[there]))
            case _:
                del parent[key]
                if isinstance(parent, dict) and rng.random() < 0.5:
                    parent[rng.choice(["", "x", "auto_map", "model_file", "quantization"])] = copy.deepcopy(
                        rng.choice(OBJECTS)
                    )
    return json.dumps(tree).encode()


def _places(tree: object) -> Iterator[tuple[Any, Any]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(children):
        yield tree, key
        yield from _places(value)


def _of_words(raw: bytes, rng: random.Random) -> bytes:
    """A value, a key or a line in the place of another."""
    words = list(_WORDS.finditer(raw[:200_000]))
    if not words:
        return raw + rng.choice(VALUES).encode("utf-8", "surrogatepass")
    one, other = rng.choice(words), rng.choice(words)
    new = rng.choice([other[0], rng.choice(VALUES).encode("utf-8", "surrogatepass")])
    return raw[: one.start()] + new + raw[one.end() :]


_WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+|[][{}]|[^\n]+\n')
