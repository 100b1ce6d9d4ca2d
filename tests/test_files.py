"""Atomic files and digests: the old content or the new, and names that depend on content only."""

from __future__ import annotations

import hashlib
import os
import time

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import digest, files


def test_replace_writes_text_and_bytes(tmp_path):
    path = tmp_path / "a.json"
    files.replace(path, "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    files.replace(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module, broken", [(files, "sync"), (os, "replace")])
def test_a_failed_replace_leaves_the_old_content(tmp_path, monkeypatch, module, broken):
    """`files.sync` and not os.fsync, which a Mac does not reach."""
    path = tmp_path / "a"
    files.replace(path, "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, broken, full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.replace(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_gives_a_new_file(tmp_path):
    # mlx reads loaded arrays later, through the open file: overwriting in place would change them.
    path = tmp_path / "a"
    files.replace(path, "old")
    with open(path) as held:
        files.replace(path, "new")
        assert held.read() == "old"
    assert path.read_text() == "new"


def test_replace_synchronises_before_the_rename(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    monkeypatch.setattr(files.sys, "platform", "linux")
    files.replace(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]  # the file, its name, the folder


def test_tensor_digest_is_the_documented_hash():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"float32|2,3|" + array.tobytes()).hexdigest()
    assert digest.tensor_digest(array) == expected
    assert digest.tensor_digest(mx.array(array)) == expected


def test_tensor_digest_ignores_layout_and_byte_order():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    expected = digest.tensor_digest(array)
    assert digest.tensor_digest(np.asfortranarray(array)) == expected
    assert digest.tensor_digest(array.astype(">i4")) == expected
    assert digest.tensor_digest(mx.array(array.T.copy()).T) == expected


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.uint8, mx.int32, mx.bool_])
def test_tensor_digest_sees_one_bit(dtype):
    a = mx.array([[0, 1], [1, 0]]).astype(dtype)
    b = mx.array([[0, 1], [1, 1]]).astype(dtype)
    assert digest.tensor_digest(a) != digest.tensor_digest(b)
    assert digest.tensor_digest(a) == digest.tensor_digest(mx.array(a))


def test_tensor_digest_sees_shape_and_dtype():
    zeros = [
        mx.zeros(4),
        mx.zeros((2, 2)),
        mx.zeros(4, mx.int32),
        mx.zeros(8, mx.float16),
        mx.zeros(8, mx.bfloat16),
    ]
    assert len({digest.tensor_digest(z) for z in zeros}) == len(zeros)


def test_root_digest_ignores_order_and_sees_names():
    root = digest.root_digest({"a": "1", "b": "2"})
    assert digest.root_digest({"b": "2", "a": "1"}) == root
    assert digest.root_digest({"a": "2", "b": "1"}) != root
    assert digest.root_digest({"a": "1"}) != root


def test_file_digest(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"kuramoto" * 100_000)
    assert digest.file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Under the name that the temporary file is going to have: the victim stays what it was."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)
    (tmp_path / f".a.tmp-{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.replace(tmp_path / "a", "new")
    assert victim.read_text() == "precious" and not (tmp_path / "a").exists()


def test_the_names_of_temporary_files_cannot_be_foreseen(tmp_path, monkeypatch):
    seen, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(a.name), rename(a, b)))
    for _ in range(3):
        files.replace(tmp_path / "a", "x")
    assert len(set(seen)) == 3


def test_what_dead_writers_left_is_cleaned_at_the_next_write(tmp_path):
    old, young, other = tmp_path / ".a.tmp-1", tmp_path / ".a.tmp-2", tmp_path / ".b.tmp-1"
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.ABANDONED,) * 2)
    files.replace(tmp_path / "a", "whole")
    assert not old.exists() and young.exists() and other.exists()


def test_a_file_is_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        files.replace(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_closed_descriptor_is_an_error_where_tests_do_not_wait_for_the_disk(tmp_path):
    with open(tmp_path / "a", "w") as file:
        fd = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.sync(fd)
