"""JSON and TOML that somebody else wrote: whatever the text, a value or one ValueError that says why.

The standard readers raise RecursionError for deep nesting and refuse or take quadratic time for long
integers, so a damaged or hostile file would end in a traceback or a hang. Every reader of the package goes
through here.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kssm_mlx.errors import KssmError

DEEPEST = 200  # levels of nesting; our own files have fewer than ten
LONGEST_INTEGER = 400  # digits that are read exactly; more are read as a float
# What an item takes in memory, times these, is less than four files of that many items and 200 MB.
MOST_CONTAINERS = 640_000  # lists and objects of a JSON text; the largest vocabularies have 530,000
MOST_ITEMS = 3_000_000  # items in them
LONGEST_KEY = 64  # parts of a dotted TOML key, which cost quadratic time
_STRING, _BRACKET = re.compile('"[^"]*"?'), re.compile(r"[][{}]")


def parse_json(text: str | bytes, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. pairs: what becomes of an object, as `object_pairs_hook` of `json.loads`.

    Raises: ValueError with the reason for anything that is no JSON, is nested deeper than `DEEPEST`, or has
        more than `MOST_CONTAINERS` lists and objects or `MOST_ITEMS` items.
    """
    if isinstance(text, bytes):
        text = _decode(text)
    if text.count("[") + text.count("{") > MOST_CONTAINERS or text.count(",") > MOST_ITEMS:
        raise ValueError(f"more than {MOST_CONTAINERS:,} lists and objects, or {MOST_ITEMS:,} items")
    if _measure_nesting(text, "[{", "]}") > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    return json.loads(text, parse_int=_integer, object_pairs_hook=pairs)


def read_json_object(path: Path, refuse: type[KssmError]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises: `refuse`, in one line, for a file that cannot be read, is no JSON, or holds another value.
    """
    try:
        value = parse_json(path.read_bytes())
    except OSError as e:
        raise refuse(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    except ValueError as e:
        raise refuse(f"{path} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise refuse(f"{path} is a JSON {type(value).__name__}; expected an object")
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text, with or without a byte order mark.

    Raises: ValueError with the reason for anything that is no TOML, is nested deeper than `DEEPEST`, or has a
        key of more than `LONGEST_KEY` parts or an integer of more than `LONGEST_INTEGER` digits.
    """
    text = text.removeprefix("\ufeff")
    if _measure_nesting(text, "[{", "]}") > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    for number, line in enumerate(text.splitlines(), 1):
        if line.partition("=")[0].count(".") >= LONGEST_KEY:
            raise ValueError(f"a key of more than {LONGEST_KEY} parts (line {number})")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as e:  # ValueError: Python's own limit on the digits of integers
        raise ValueError("an integer with too many digits" if "digit" in str(e) else str(e)) from None


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"byte {e.start} is not UTF-8") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


@cache  # pydantic reads a class in milliseconds, as long as most of what is then validated
def adapter_of(cls: type) -> Any:
    """What validates values of a dataclass, a `pydantic.TypeAdapter`."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _measure_nesting(text: str, opening: str, closing: str) -> int:
    """The deepest nesting of brackets outside of quoted strings, an upper bound where quotes do not close."""
    if sum(map(text.count, opening)) <= DEEPEST:
        return 0
    # Strings away: first what is escaped in them, then from quote to quote.
    plain = _STRING.sub("", text.replace("\\\\", "").replace('\\"', ""))
    depth = deepest = 0
    for bracket in _BRACKET.findall(plain):
        depth += 1 if bracket in opening else -1
        deepest = max(deepest, depth)
    return deepest
