"""The header of a safetensors file, believed only as far as it adds up.

    8 bytes: n, little endian | n bytes of JSON: name -> dtype, shape, data_offsets | the data

Source: the format's description, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from kssm_mlx.parsing import parse_json
from kssm_mlx.weights.audit.findings import Finding, list_some
from kssm_mlx.weights.io.pointers import not_weights
from kssm_mlx.weights.io.tensors import MOST_DIMENSIONS, TensorInfo, itemsize

DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool_"},
    **{
        f"{short}{bits}": f"{long}{bits}"
        for short, long in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
LIMIT = 25_000_000  # bytes of header, a quarter of what the format allows: 200,000 tensors have less
LONGEST_NAME = 1000  # characters
Read = tuple[dict[str, TensorInfo], list[Finding]]


def read_safetensors(path: Path) -> Read:
    """The tensors of one file, and what is wrong with its header (W1) and their extents (W2)."""
    if wrong := not_weights(path):
        return {}, [wrong]
    size = path.stat().st_size
    with open(path, "rb") as f:
        prefix = f.read(8)
        if len(prefix) < 8:
            return {}, [Finding("W1", f"{path.name} has {size} bytes, not even a header length")]
        (length,) = struct.unpack("<Q", prefix)
        # Before it is read: a wrong length would ask for any amount of memory.
        if length > min(LIMIT, size - 8):
            return {}, [
                Finding("W1", f"{path.name} announces a header of {length:,} bytes in a file of {size:,}")
            ]
        raw = f.read(length)
    repeated: list[str] = []
    try:
        header = parse_json(raw, pairs=lambda pairs: _note_repeats(pairs, repeated))
    except ValueError as e:
        return {}, [Finding("W1", f"the header of {path.name} is not JSON: {e}")]
    if not isinstance(header, dict):
        return {}, [Finding("W1", f"the header of {path.name} is not a table of tensors")]
    header.pop("__metadata__", None)
    findings = (
        [Finding("W1", f"{path.name} has {list_some(map(_shorten_text, repeated))} twice")]
        if repeated
        else []
    )
    tensors = {}
    for name, entry in header.items():
        if wrong := f"a name of {len(name):,} characters" if len(name) > LONGEST_NAME else _find_fault(entry):
            findings.append(Finding("W1", f"{_shorten_text(name)} in {path.name}: {wrong}"))
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        tensors[name] = TensorInfo(DTYPES[entry["dtype"]], shape, path, 8 + length + begin, end - begin)
    return tensors, findings + ([] if findings else _extents(tensors, path, 8 + length, size))


def _note_repeats(pairs: list[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    """A JSON object; keys that come twice, of which JSON parsers silently keep the last, are noted."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated += sorted(key for key, count in counts.items() if count > 1)
    return found


def _find_fault(entry: Any) -> str:
    """Why a header's entry cannot be a tensor; empty if it can."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "its entry is not dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype {_shorten_text(repr(dtype))} is unknown; known: {', '.join(DTYPES)}"
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        return "shape or data_offsets are not natural numbers"
    if len(shape) > MOST_DIMENSIONS:
        return f"it has {len(shape)} dimensions"
    needed, given = math.prod(shape) * itemsize(DTYPES[dtype]), offsets[1] - offsets[0]
    if needed != given:
        return f"{dtype} {shape} needs {needed:,} bytes, its offsets span {given:,}"
    return ""


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _shorten_text(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."


def _extents(tensors: dict[str, TensorInfo], path: Path, start: int, size: int) -> list[Finding]:
    """W2: the tensors, in the order of their offsets, fill the file from the header to its end."""
    findings, at, before = [], start, "the header"
    # Without gaps and overlaps no byte of the file is unaccounted for, and none is read as two tensors.
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if t.offset != at:
            word, by = ("overlap", at - t.offset) if t.offset < at else ("gap", t.offset - at)
            findings.append(Finding("W2", f"{path.name}: {word} of {by:,} bytes between {before} and {name}"))
        at, before = max(at, t.offset + t.nbytes), name
    if at > size:
        cut = list_some(n for n, t in tensors.items() if t.offset + t.nbytes > size)
        findings.append(Finding("W2", f"{path.name} is {at - size:,} bytes short; cut off: {cut}"))
    if at < size:
        findings.append(Finding("W2", f"{path.name} has {size - at:,} bytes after the last tensor"))
    return findings
