"""Numbers on the disk that are read as one array, in one file or in several.

    train.bin                                  up to `MOST` numbers
    train.0000.bin, train.0001.bin, ...        more than that: `MOST` in each, the last has the rest

What names them is the sha256 of all bytes in their order, the same however they are cut.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from kssm_mlx import files
from kssm_mlx.errors import DataError

MOST = 1 << 30  # ids of a file
ONE_FILE = 1 << 62
BLOCK = 1 << 20  # numbers read at once
_NPY_MAGIC = b"\x93NUMPY"


class Shards:
    """Arrays one behind the other, indexed as the one array [N] that they are; what is taken is a copy."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([part.size for part in parts])
        self.size, self.dtype = int(self._ends[-1]), parts[0].dtype
        self.shape = (self.size,)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> Any:
        """Of a slice, a number, or an array of numbers of any shape. Raises: IndexError beyond the end."""
        if isinstance(key, slice):
            begin, end, step = key.indices(self.size)
            if step != 1:
                return self[np.arange(begin, end, step)]
            begins = self._ends - [part.size for part in self.parts]
            bounds = zip(self.parts, begins.tolist(), strict=True)
            taken = [part[max(0, begin - own) : max(0, end - own)] for part, own in bounds]
            return np.concatenate(taken)
        places = np.asarray(key)
        if places.dtype == bool:
            return self[np.flatnonzero(places)]
        places = np.where(places < 0, places + self.size, places)
        if places.size and not (places.min() >= 0 and places.max() < self.size):
            raise IndexError(f"place {key!r} is not among {self.size}")
        found, holders = np.empty(places.shape, self.dtype), np.searchsorted(self._ends, places, side="right")
        for i in np.unique(holders):
            own = holders == i
            found[own] = self.parts[i][places[own] - (self._ends[i] - self.parts[i].size)]
        return found[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("several files are one array in memory only as a copy")
        return np.asarray(self[:], dtype)


Ids: TypeAlias = np.ndarray | Shards


def read_blocks(ids: Ids, size: int = BLOCK, overlap: int = 0) -> Iterator[np.ndarray]:
    """Runs of `size` numbers and of the `overlap` behind each, which together are all of `ids`; copies, and
    the pages of a mapped file are given back.
    """
    for begin in range(0, max(1, ids.size - overlap), size):
        yield np.array(ids[begin : begin + size + overlap])
        release(ids)


def release(ids: Ids) -> None:
    """Give the pages of mapped files back, which else stay resident; they are read again when asked for."""
    for part in ids.parts if isinstance(ids, Shards) else (ids,):
        base: Any = part
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)


def shard_paths(folder: Path, name: str, count: int) -> list[Path]:
    """The files of `name`, such as train.bin, when it is `count` of them."""
    stem = name.removesuffix(".bin")
    return [folder / f"{stem}.{i:04d}.bin" for i in range(count)] if count > 1 else [folder / name]


def find_shards(folder: Path, name: str) -> list[Path]:
    """The files of `name` that are there."""
    several = sorted(folder.glob(f"{name.removesuffix('.bin')}.[0-9][0-9][0-9][0-9].bin"))
    return several or [folder / name]


def remove_shards(folder: Path, name: str) -> None:
    for path in (folder / name, *find_shards(folder, name)):
        path.unlink(missing_ok=True)


def write_numbers(folder: Path, name: str, numbers: np.ndarray, dtype: np.dtype) -> None:
    """The files of `name`, each in one step, in place of those that were there."""
    remove_shards(folder, name)
    parts = np.split(numbers, range(MOST, numbers.size, MOST))
    for path, part in zip(shard_paths(folder, name, len(parts)), parts, strict=True):
        files.replace(path, part.astype(dtype).tobytes())


def map_numbers(folder: Path, name: str, count: int, dtype: np.dtype, length: int) -> Ids:
    """Map the `count` files of `name`, which hold exactly `length` numbers of `dtype`.

    Raises: DataError for a file that is missing, another length and a .npy header.
    """
    paths = shard_paths(folder, name, count)
    sizes = [_bytes_of(path) for path in paths]
    if sum(sizes) != length * dtype.itemsize or any(size % dtype.itemsize for size in sizes):
        held = folder / name if count == 1 else f"{paths[0]} to {paths[-1].name}"
        raise DataError(
            f"{held} has {sum(sizes)} bytes; expected {length * dtype.itemsize} for {length} ids of "
            f"{dtype.name}; prepare the data again in an empty folder"
        )
    parts = [
        np.memmap(path, dtype, mode="r", shape=(size // dtype.itemsize,))
        for path, size in zip(paths, sizes, strict=True)
    ]
    return parts[0] if count == 1 else Shards(parts)


def _bytes_of(path: Path) -> int:
    try:
        with open(path, "rb") as f:
            magic = f.read(len(_NPY_MAGIC))
        size = path.stat().st_size
    except OSError as e:
        raise DataError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    if magic == _NPY_MAGIC:
        raise DataError(f"{path} is a .npy file; expected raw ids without its header, as kssm writes them")
    return size


def shards_digest(paths: Iterable[Path]) -> str:
    """sha256 of the bytes of files one behind the other, read in blocks."""
    h = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            while block := f.read(BLOCK):
                h.update(block)
    return h.hexdigest()


class Growing:
    """Numbers that are appended to files of at most `most`, after the first `count`, which are there."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, count: int = 0, most: int | None = None):
        self._folder, self._name, self._most = folder, name, most or MOST
        self.dtype, self.count = dtype, count
        folder.mkdir(parents=True, exist_ok=True)
        *full, last = self.paths
        self._file = _cut_to(last, (count - self._most * len(full)) * dtype.itemsize)

    @property
    def paths(self) -> list[Path]:
        files = max(1, -(-self.count // self._most))
        return [self._folder / f"{self._name}.{i}" for i in range(files)]

    def append(self, numbers: np.ndarray) -> None:
        for part in np.split(numbers, range(self._most - self.count % self._most, numbers.size, self._most)):
            full = len(self.paths)
            self.count += part.size
            if len(self.paths) > full:
                self.close()
                self._file = _cut_to(self.paths[-1], 0)
            self._file.write(part.astype(self.dtype).tobytes())

    def sync(self) -> None:
        self._file.flush()
        files.sync(self._file.fileno())

    def close(self) -> None:
        """All is on the disk, and stays readable; a second time does nothing."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def read(self) -> Ids:
        """All of them, mapped, of closed files."""
        if not self.count:
            return np.empty(0, self.dtype)
        parts = [np.memmap(path, self.dtype, mode="r") for path in self.paths]
        return parts[0] if len(parts) == 1 else Shards(parts)

    def move(self, folder: Path) -> None:
        """Close the files and give them their names in `folder`, in place of what was there."""
        self.close()
        remove_shards(folder, self._name)
        targets = shard_paths(folder, self._name, len(self.paths))
        for path, target in zip(self.paths, targets, strict=True):
            os.replace(path, target)


def _cut_to(path: Path, end: int) -> BinaryIO:
    """A file open at its end. Raises: OSError for one that is shorter."""
    if path.exists() or not end:
        path.touch()
    file = open(path, "r+b")  # noqa: SIM115  it stays open for all that is appended
    if file.seek(0, os.SEEK_END) < end:
        file.close()
        raise OSError(f"{path} is shorter than {end} bytes")
    file.truncate(end)
    file.seek(end)
    return file
