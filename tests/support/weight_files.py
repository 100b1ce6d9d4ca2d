"""Weights of every architecture, as if trained, in files written byte by byte, so that they can be wrong."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from kssm_mlx import models
from kssm_mlx.models import FAMILIES
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.safetensors_header import DTYPES
from kssm_mlx.weights.naming.configs import to_file

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3}
RANKS = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 4)
CONFIGS = {
    "mamba": {**SIZES, "state_size": 4, "time_step_rank": 2},
    "falcon_mamba": {**SIZES, "state_size": 4, "time_step_rank": 2, "tie_word_embeddings": False},
    "mamba2": {**SIZES, "num_heads": 4, "head_dim": 8, "state_size": 6},
    "rwkv": {**SIZES, "tie_word_embeddings": True},
    "rwkv7": {**SIZES, **RANKS, "head_dim": 8},
    "kssm": {"vocab_size": 40, "d_model": 16, "n_layers": 3, "n_groups": 8, "mlp_hidden": 24},
}
SHORT = {ours: short for short, ours in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor as a file has it: the format's dtype, the shape and the bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def values(self) -> np.ndarray:
        return np.frombuffer(self.data, "<f4").reshape(self.shape)


def stored(values: np.ndarray) -> Stored:
    values = np.ascontiguousarray(values, "<f4")
    return Stored("F32", values.shape, values.tobytes())


def model(family: str, seed: int = 0, **changes):
    """A model with every parameter moved off its initial value, matrices at the scale of trained ones."""
    config = models.config_from_dict({"model_type": family, **CONFIGS[family], **changes})
    built = models.build(config, seed=seed)
    rng = np.random.default_rng(seed)
    moved = []
    for name, value in tree_flatten(built.parameters()):
        matrix = name.endswith("weight") and sum(n > 1 for n in value.shape) > 1
        step = 0.7 / math.sqrt(math.prod(value.shape[1:])) if matrix else 0.1
        noise = step * rng.standard_normal(value.shape).astype(np.float32)
        moved.append((name, value + mx.array(noise)))
    built.load_weights(moved)
    mx.eval(built.parameters())
    return built


def tensors_of(built) -> dict[str, Stored]:
    return {name: stored(np.array(value)) for name, value in tree_flatten(built.parameters())}


def folder(path: Path, family: str, seed: int = 0, **changes) -> Path:
    """config.json and model.safetensors of a tiny model."""
    built = model(family, seed, **changes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(to_file(built.args)))
    write(path / "model.safetensors", tensors_of(built))
    return path


def write(path: Path, tensors: dict[str, Stored], spoil=None) -> None:
    """A safetensors file; `spoil` may change the table in its header, given as a list of pairs."""
    entries, at = [], 0
    for name, t in tensors.items():
        spans = [at, at + len(t.data)]
        entries.append((name, {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": spans}))
        at = spans[1]
    entries = spoil(entries) if spoil else entries
    pairs = ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries)
    header = f"{{{pairs}}}".encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(t.data for t in tensors.values()))


def read(path: Path) -> dict[str, Stored]:
    """Every tensor of a folder or file, in the order of the names."""
    c = open_container(path)
    return {n: Stored(SHORT[t.dtype], t.shape, t.map().tobytes()) for n, t in sorted(c.tensors.items())}


def failed(found) -> set[str]:
    """The checks that an inspection failed."""
    return {f.check for f in found.findings if not f.warning}


def shard(path: Path) -> Path:
    """Split a folder's one file into two shards with an index."""
    tensors = read(path)
    names = list(tensors)
    halves = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, own in halves.items():
        write(path / file, {n: tensors[n] for n in own})
    (path / "model.safetensors").unlink()
    weight_map = {n: file for file, own in halves.items() for n in own}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}


def torch_pickle(tensors: dict[str, Stored], extra: bytes = b"") -> bytes:
    """The pickle that torch.save writes for a table of tensors; `extra` is put before its end."""
    body = b"\x80\x02}("
    for key, (name, t) in enumerate(tensors.items()):
        strides = [math.prod(t.shape[i + 1 :]) for i in range(len(t.shape))]
        storage = _text("storage") + b"ctorch\n" + STORAGES[t.dtype].encode() + b"\n"
        storage += _text(str(key)) + _text("cpu") + _int(math.prod(t.shape))
        call = b"((" + storage + b"tQ" + _int(0) + _tuple(t.shape) + _tuple(strides)
        call += b"\x89ccollections\nOrderedDict\n)Rt"
        body += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + call + b"R"
    return body + b"u" + extra + b"."


def write_torch(path: Path, tensors: dict[str, Stored], pickle: bytes | None = None) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", torch_pickle(tensors) if pickle is None else pickle)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for key, t in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", t.data)


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def _tuple(numbers) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"


def blinkdl(tensors: dict[str, Stored], family: str) -> dict[str, Stored]:
    """Our names as BlinkDL's, by the key map backwards; vectors as [1, 1, D], low-rank maps transposed."""
    back = {ours: (name, how) for name, (ours, how) in FAMILIES[family].key_maps["blinkdl"].items()}
    found = {}
    for ours, t in tensors.items():
        n = next((part for part in ours.split(".") if part.isdigit()), "")
        name, how = back[ours.replace(f".{n}.", ".{N}.", 1) if n else ours]
        values = t.values
        if how == "transpose":
            values = values.T
        elif how == "flat" and family == "rwkv7":
            values = values.reshape(1, 1, -1)
        found[name.replace("{N}", n)] = stored(values)
    return found
