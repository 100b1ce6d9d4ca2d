"""Bytes changed at random, in every kind of file: a verdict or a refusal, never a crash."""

import random
import shutil

import pytest

from kssm_mlx.errors import KssmError
from kssm_mlx.weights.audit.inspect import inspect
from tests.support import weight_files


def spoil(data: bytes, rng: random.Random) -> bytes:
    """One to twenty bytes flipped, replaced or removed, mostly where headers, pickles and directories are."""
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        size = len(spoilt)
        at = rng.choice(
            [rng.randrange(size), rng.randrange(min(6000, size)), size - 1 - rng.randrange(min(6000, size))]
        )
        match rng.randrange(3):
            case 0:
                spoilt[at] ^= 1 << rng.randrange(8)
            case 1:
                spoilt[at] = rng.randrange(256)
            case 2:
                del spoilt[at : at + rng.randrange(5)]
    return bytes(spoilt)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "blinkdl", "config", "index"])
def test_random_damage_never_crashes(tmp_path, kind):
    path = weight_files.folder(tmp_path / "m", "rwkv7")
    target = file = path / "model.safetensors"
    tensors = weight_files.read(path)
    if kind == "config":
        file, target = path / "config.json", path
    if kind == "index":
        file, target = weight_files.shard(path) / "model.safetensors.index.json", path
    if kind == "torch":
        file.unlink()
        target = file = path / "pytorch_model.bin"
        weight_files.write_torch(file, tensors)
    if kind == "blinkdl":
        shutil.rmtree(path)
        target = file = tmp_path / "x.pth"
        weight_files.write_torch(file, weight_files.blinkdl(tensors, "rwkv7"))
    assert inspect(target).ok
    good, rng, rejected = file.read_bytes(), random.Random(0), 0
    for _ in range(60):
        file.write_bytes(spoil(good, rng))
        try:
            rejected += not inspect(target).ok
        except KssmError:
            rejected += 1
    assert rejected >= 20
