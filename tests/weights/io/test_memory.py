"""Readers of weight files take a small multiple of the file, whatever is in it."""

import struct
import subprocess
import sys
import zipfile

import pytest

from kssm_mlx.parsing import MOST_CONTAINERS, MOST_ITEMS
from kssm_mlx.weights.io.torch_pickle import MOST_INSTRUCTIONS, MOST_OBJECTS

CONTAINERS, ITEMS, ENTRY = (
    MOST_CONTAINERS - 2,
    MOST_ITEMS - 2,
    '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
)


def in_a_list(item: bytes, times: int) -> bytes:
    return b"[" + item * times + b"0]"


HEADERS = {
    "lists": lambda: in_a_list(b"[],", CONTAINERS),
    "objects": lambda: in_a_list(b'{"a":0},', CONTAINERS),
    "numbers": lambda: in_a_list(b"1000,", ITEMS),
    "strings": lambda: in_a_list(b'"aa",', ITEMS),
    "one string": lambda: ('{"a":"' + "x" * 23_000_000 + '\U0001f600"}').encode(),
    "tensors": lambda: (
        "{" + ",".join(f'"t{i}":{ENTRY}' for i in range((CONTAINERS - 1) // 3)) + "}"
    ).encode(),
}
PICKLES = {
    "lists": lambda: b"]" * MOST_OBJECTS,
    "tuples": lambda: b"N" + b"\x85" * MOST_OBJECTS,
    "text": lambda: b"X" + struct.pack("<I", 31_000_004) + b"x" * 31_000_000 + "\U0001f600".encode(),
    "names": lambda: b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(MOST_INSTRUCTIONS - 4)),
    "numbers": lambda: (b"\x8a\x08" + b"\x7f" * 8) * (MOST_INSTRUCTIONS - 4),
}


def assert_modest(reader, path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.appetite", reader, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[0]) < 4 * path.stat().st_size + 200e6


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, name):
    raw = HEADERS[name]()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert_modest("safetensors", path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(tmp_path, name):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + PICKLES[name]() + b".")
    assert_modest("torch", path)
