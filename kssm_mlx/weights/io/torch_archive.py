"""The tensors of a torch file (.pth, .pt, .bin): a zip archive around a pickle, memory-mapped, without torch.

    NAME/data.pkl: the table of tensors | NAME/data/0, NAME/data/1, ...: bytes of the storages, uncompressed

Source: torch/serialization.py.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kssm_mlx.weights.audit.findings import Finding
from kssm_mlx.weights.io.pointers import not_weights
from kssm_mlx.weights.io.safetensors_header import Read
from kssm_mlx.weights.io.tensors import MOST_DIMENSIONS, TensorInfo, itemsize, row_strides
from kssm_mlx.weights.io.torch_pickle import STORAGES, Damaged, Refused, Tensor, Unreadable, run

LARGEST = 32_000_000  # bytes of data.pkl; a state dict of a hundred thousand tensors has less
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
RESAVE = "torch >= 1.6 writes one that is read: torch.save(torch.load(FILE, weights_only=True), NEW)"
AS_FLOATS = "convert the weights to float32, float16 or bfloat16 with the tool that wrote them"
NOT_TORCH_LOAD = "do not open this file with torch.load; get the model as safetensors from its authors"


READ = sorted(set(STORAGES.values()))
# zipfile's ways to say that a file is no archive: names that are no UTF-8, offsets beyond 2^63, no end.
NOT_WHOLE = (zipfile.BadZipFile, EOFError, struct.error, ValueError, OverflowError, LookupError, OSError)


def read_torch(path: Path) -> Read:
    """The tensors of one torch file, and what is wrong with it: container (W1, W2) or pickle (W4)."""
    if wrong := not_weights(path):
        return {}, [wrong]
    with open(path, "rb") as f:
        if f.read(len(LEGACY)) == LEGACY:
            return {}, [Finding("W1", f"{path.name} is in the format of torch before 1.6, not a zip", RESAVE)]
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except Refused as e:
        return {}, [Finding("W4", f"the pickle in {path.name} {e}", NOT_TORCH_LOAD)]
    except Unreadable as e:
        return {}, [Finding("W1", f"{path.name} holds {e}; {', '.join(READ)} are read", AS_FLOATS)]
    except Damaged as e:
        return {}, [Finding("W1", f"{path.name}: {e}")]
    except NOT_WHOLE as e:
        return {}, [Finding("W2", f"{path.name} is not a whole zip archive: {e}")]
    # What zipfile raises for a whole archive that it cannot read: RuntimeError for an encrypted entry, its
    # subclass NotImplementedError for a compression that it does not know.
    except RuntimeError as e:
        return {}, [Finding("W2", f"{path.name} has an entry that cannot be read: {e}", NOT_TORCH_LOAD)]


def check_archive(path: Path, progress: Callable[[int], None]) -> list[Finding]:
    """W5: the entries of a torch file whose bytes do not have the CRC-32 that the archive states."""
    findings = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            crc, left = 0, entry.file_size
            with open(path, "rb") as f:
                f.seek(_data_offset(path, entry))
                while left and (block := f.read(min(left, 1 << 22))):
                    crc, left = zlib.crc32(block, crc), left - len(block)
                    progress(len(block))
            if crc != entry.CRC:
                findings.append(
                    Finding("W5", f"{entry.filename} in {path.name} has CRC {crc:08x}, not {entry.CRC:08x}")
                )
    return findings


def _read(path: Path, archive: zipfile.ZipFile) -> Read:
    entries = {entry.filename: entry for entry in archive.infolist()}
    starts = {entry.filename: _data_offset(path, entry) for entry in archive.infolist()}
    prefix = _prefix(archive, entries)
    tensors, findings = {}, []
    for name, value in _state_dict(run(archive.read(f"{prefix}data.pkl"))).items():
        entry = entries.get(f"{prefix}data/{value.storage.key}")
        wrong = _find_fault(value, entry)
        if wrong or entry is None:
            findings.append(Finding("W2", f"{name} in {path.name}: {wrong}"))
        else:
            tensors[name] = _make_info(value, path, starts[entry.filename])
    return tensors, findings


def _prefix(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder in the archive. Raises: Damaged for an archive that torch cannot have written."""
    pickles = [name for name in entries if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1 or len(entries) < len(archive.infolist()):
        raise Damaged("a torch archive has one data.pkl and every entry once, this one has not")
    if compressed := [e.filename for e in entries.values() if e.compress_type != zipfile.ZIP_STORED]:
        raise Damaged(f"{compressed[0]} is compressed, which torch never does")
    if entries[pickles[0]].file_size > LARGEST:
        raise Damaged(f"its data.pkl has more than {LARGEST:,} bytes")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
        raise Damaged("it was written on a big-endian machine, which is not read")
    return prefix


def _state_dict(state: Any) -> dict[str, Tensor]:
    """Raises: Damaged unless it is a flat table of tensors."""
    if not isinstance(state, dict):
        raise Damaged(f"it holds a {type(state).__name__}, not a table of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise Damaged(
                f"{name!a} in it is a {kind}, not a tensor: a training checkpoint? save its weights alone"
            )
        if not isinstance(name, str):
            raise Damaged(f"a tensor in it is called {name!a}, which is not a string")
    return state


def _find_fault(tensor: Tensor, entry: zipfile.ZipInfo | None) -> str:
    """Why a described tensor cannot be in the archive; empty if it can."""
    storage = tensor.storage
    if entry is None:
        return f"the archive has no storage {storage.key}"
    if entry.file_size != storage.elements * itemsize(storage.dtype):
        return f"its storage has {entry.file_size:,} bytes for {storage.elements:,} {storage.dtype}"
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MOST_DIMENSIONS:
        return f"it has {len(tensor.shape)} dimensions and {len(tensor.strides)} strides"
    if math.prod(tensor.shape) and _last_element(tensor) >= storage.elements:
        return f"it reaches element {_last_element(tensor):,} of a storage of {storage.elements:,}"
    return ""


def _make_info(tensor: Tensor, path: Path, start: int) -> TensorInfo:
    dtype, shape, size = tensor.storage.dtype, tensor.shape, itemsize(tensor.storage.dtype)
    elements, offset = math.prod(shape), start + tensor.offset * size
    rows = zip(shape, tensor.strides, row_strides(shape), strict=True)
    if elements <= 1 or all(n == 1 or has == needs for n, has, needs in rows):
        return TensorInfo(dtype, shape, path, offset, elements * size)
    return TensorInfo(
        dtype, shape, path, offset, (_last_element(tensor) + 1 - tensor.offset) * size, tensor.strides
    )


def _last_element(tensor: Tensor) -> int:
    """The largest element of its storage that a tensor reaches."""
    return tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind its own header, whose padding only it knows."""
    with open(path, "rb") as f:
        f.seek(max(0, entry.header_offset))
        header = f.read(30)
    if entry.header_offset < 0 or len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"{entry.filename} does not begin where the archive says")
    name, extra = struct.unpack_from("<HH", header, 26)
    start = entry.header_offset + 30 + name + extra
    if start + entry.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"{entry.filename} reaches beyond the end of the file")
    return start
