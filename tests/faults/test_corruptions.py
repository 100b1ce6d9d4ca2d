"""Every kind of damage to weights is rejected, by the check that is about it, on every architecture.

A kind under BY_DIGEST leaves numbers that training could have given: only a manifest tells, and its test
shows both: W11 finds it, and nothing else does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.errors import WeightMismatch
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.io.container import read_files
from kssm_mlx.weights.loader import load_weights
from tests.support import weight_files
from tests.support.weight_files import Stored, failed, read, stored, write

FAMILIES = sorted(weight_files.CONFIGS)
Tensors = dict[str, Stored]


@pytest.fixture(scope="module", params=FAMILIES)
def good(request, tmp_path_factory):
    """(family, folder with good weights, their digests)."""
    path = weight_files.folder(tmp_path_factory.mktemp(request.param) / "good", request.param)
    found = inspect(path)
    assert found.ok, found.findings
    return request.param, path, found.digests


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good[1], tmp_path / "bad")


# --- the parts of a model that a corruption picks


def matrices(tensors: Tensors, block: int | None = 1) -> list[str]:
    """Names of the matrices of a block that signals pass through, convolutions apart."""
    return [
        n
        for n, t in sorted(tensors.items())
        if n.endswith(".weight") and len(t.shape) == 2 and (block is None or f".{block}." in n)
    ]


def twins(tensors: Tensors) -> tuple[str, str]:
    """One matrix in two blocks."""
    name = matrices(tensors)[0]
    return name, name.replace(".1.", ".2.", 1)


def embedding(tensors: Tensors) -> str:
    return next(n for n in tensors if "embedding" in n)


def dynamics(tensors: Tensors) -> str:
    ends = ("A_log", "time_decay", "w_lora.lora.2.bias", "log_gamma")
    return next(n for n in sorted(tensors) if n.endswith(ends))


def change(tensors: Tensors, name: str, how: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    return {**tensors, name: stored(how(tensors[name].values.copy()))}


def put(x: np.ndarray, value: float) -> np.ndarray:
    x.reshape(-1)[x.size // 2] = value
    return x


# --- damage to the numbers: tensors -> tensors


def swapped(t: Tensors) -> Tensors:
    a, b = twins(t)
    return {**t, a: t[b], b: t[a]}


def by_columns(t: Tensors) -> Tensors:
    """A matrix stored column by column; for a square one, its transpose."""
    return change(t, matrices(t)[0], lambda x: x.T.reshape(x.shape))


def reinitialised(t: Tensors) -> Tensors:
    rng = np.random.default_rng(1)
    for name in matrices(t):
        t = change(t, name, lambda x: x.std() * rng.standard_normal(x.shape))
    return t


def bit_flipped(t: Tensors) -> Tensors:
    name = matrices(t)[0]
    data = bytearray(t[name].data)
    data[len(data) // 2 // 4 * 4] ^= 1  # the lowest bit of one number
    return {**t, name: t[name]._replace(data=bytes(data))}


def copied_block(t: Tensors) -> Tensors:
    a, b = twins(t)
    return {**t, b: t[a]}


def zeroed_block(t: Tensors) -> Tensors:
    for name in t:
        t = change(t, name, np.zeros_like) if ".1." in name else t
    return t


def tiny_feed_forward(t: Tensors) -> Tensors:
    """One kind of matrix at 1e-7 in every block, as in a published RWKV-4 test model."""
    kind = matrices(t)[-1]
    for n in range(3):
        t = change(t, kind.replace(".1.", f".{n}.", 1), lambda x: 1e-7 * x)
    return t


VALUES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "NaN": (lambda t: change(t, matrices(t)[0], lambda x: put(x, np.nan)), "W13"),
    "infinity": (lambda t: change(t, embedding(t), lambda x: put(x, -np.inf)), "W13"),
    "zeroed tensor": (lambda t: change(t, matrices(t)[0], np.zeros_like), "W14"),
    "zeroed block": (zeroed_block, "W14"),
    "constant matrix": (lambda t: change(t, matrices(t)[0], lambda x: np.full_like(x, 0.3)), "W14"),
    "one block copied to another": (copied_block, "W15"),
    "dead layer": (lambda t: change(t, matrices(t)[0], lambda x: 1e-6 * x), "W16"),
    "exploded layer": (lambda t: change(t, matrices(t)[0], lambda x: 1e5 * x), "W16"),
    "a kind at 1e-7 in all blocks": (tiny_feed_forward, "W16"),
    "decay out of range": (lambda t: change(t, dynamics(t), lambda x: put(x, 3e4)), "W17"),
    "decay that never forgets": (lambda t: change(t, dynamics(t), lambda x: put(x, -3e4)), "W17"),
    "untrained embedding rows": (
        lambda t: change(t, embedding(t), lambda x: np.where(np.arange(len(x))[:, None] < 25, 1e-6 * x, x)),
        "W18",
    ),
}
BY_DIGEST: dict[str, Callable[[Tensors], Tensors]] = {
    "bit flip in the data": bit_flipped,
    "swapped tensors of equal shape": swapped,
    "matrix stored by columns": by_columns,
    "permuted rows": lambda t: change(t, matrices(t)[0], lambda x: x[::-1]),
    "permuted vocabulary": lambda t: change(t, embedding(t), lambda x: np.roll(x, 1, axis=0)),
    "scaled tensor": lambda t: change(t, matrices(t)[0], lambda x: 1.5 * x),
    "sign of a tensor": lambda t: change(t, matrices(t)[0], np.negative),
    "re-initialised layer": reinitialised,
    "noise on one tensor": lambda t: change(
        t, matrices(t)[0], lambda x: x + 1e-3 * np.random.default_rng(2).standard_normal(x.shape)
    ),
}
# --- damage to names, shapes and dtypes


def retyped(t: Tensors, name: str, dtype: str) -> Tensors:
    return {**t, name: t[name]._replace(dtype=dtype)}


def doubled(t: Tensors) -> Tensors:
    name = matrices(t)[0]
    return {**t, name: Stored("F64", t[name].shape, t[name].values.astype("<f8").tobytes())}


def halved(t: Tensors) -> Tensors:
    """One tensor in float16 where its kind is float32 in the other blocks."""
    name = matrices(t)[0]
    return {**t, name: Stored("F16", t[name].shape, t[name].values.astype("<f2").tobytes())}


NAMES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing tensor": (lambda t: {n: v for n, v in t.items() if n != matrices(t)[0]}, "W7"),
    "missing block": (lambda t: {n: v for n, v in t.items() if ".1." not in n}, "W7"),
    "extra tensor": (lambda t: {**t, "surplus.weight": t[matrices(t)[0]]}, "W7"),
    "extra block": (
        lambda t: {**t, **{n.replace(".2.", ".3.", 1): v for n, v in t.items() if ".2." in n}},
        "W7",
    ),
    "renamed tensor": (lambda t: {n.replace("weight", "wieght"): v for n, v in t.items()}, "W7"),
    "transposed matrix": (lambda t: change(t, embedding(t), lambda x: x.T), "W8"),
    "row cut off": (lambda t: change(t, matrices(t)[0], lambda x: x[:-1]), "W8"),
    "integers for floats": (lambda t: retyped(t, matrices(t)[0], "I32"), "W9"),
    "float64": (doubled, "W9"),
    "one tensor in half precision": (halved, "W9"),
}
TENSORS = {**VALUES, **NAMES}


@pytest.mark.parametrize("kind", TENSORS)
def test_damaged_tensors_are_rejected(good, copy, kind):
    damage, check = TENSORS[kind]
    write(copy / "model.safetensors", damage(read(copy)))
    with pytest.raises(WeightMismatch, match=rf"{check} "):
        load_weights(copy)


@pytest.mark.parametrize("kind", BY_DIGEST)
def test_plausible_damage_needs_a_manifest(good, copy, kind):
    """Detectable only with a manifest: without one these pass L0 to L3, and only W11 sees them."""
    write(copy / "model.safetensors", BY_DIGEST[kind](read(copy)))
    assert failed(inspect(copy)) == set()
    assert failed(inspect(copy, expected=good[2])) == {"W11"}


# --- damage to the container


def header(file: Path, spoil) -> None:
    write(file, read(file.parent), spoil)


def edit(pairs, i: int, **changes):
    name, entry = pairs[i]
    return [*pairs[:i], (name, {**entry, **changes}), *pairs[i + 1 :]]


def offsets(pairs, i: int, by: int, ends: bool = True):
    begin, end = pairs[i][1]["data_offsets"]
    return edit(pairs, i, data_offsets=[begin + by, end + by])


def patch(file: Path, at: int, new: bytes) -> None:
    data = bytearray(file.read_bytes())
    data[at : at + len(new)] = new
    file.write_bytes(data)


CONTAINER: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit flip in the header": (lambda f: patch(f, 8, bytes([ord("{") ^ 4])), "W1"),
    "bit flip in a shape": (lambda f: header(f, lambda p: edit(p, 2, shape=[3])), "W1"),
    "huge header length": (lambda f: patch(f, 0, b"\xff" * 8), "W1"),
    "header length zero": (lambda f: patch(f, 0, bytes(8)), "W1"),
    "empty file": (lambda f: f.write_bytes(b""), "W1"),
    "a web page instead of weights": (lambda f: f.write_bytes(b"<!DOCTYPE html><html>" * 50), "W1"),
    "a name twice": (lambda f: header(f, lambda p: [*p, p[0]]), "W1"),
    "unknown dtype": (lambda f: header(f, lambda p: edit(p, 1, dtype="F7")), "W1"),
    "negative offset": (lambda f: header(f, lambda p: edit(p, 0, data_offsets=[-4, 4])), "W1"),
    "overlap": (lambda f: header(f, lambda p: offsets(p, 1, -4)), "W2"),
    "gap": (lambda f: header(f, lambda p: offsets(p, len(p) - 1, 4)), "W2"),
    "offset beyond the file": (lambda f: header(f, lambda p: offsets(p, 3, 1 << 40)), "W2"),
    "one byte short": (lambda f: f.write_bytes(f.read_bytes()[:-1]), "W2"),
    "trailing bytes": (lambda f: f.write_bytes(f.read_bytes() + b"\0"), "W2"),
}


@pytest.mark.parametrize("kind", CONTAINER)
def test_damaged_containers_are_rejected(copy, kind):
    damage, check = CONTAINER[kind]
    damage(copy / "model.safetensors")
    with pytest.raises(WeightMismatch, match=rf"{check} "):
        load_weights(copy)


# --- damage to shards and their index


def index(folder: Path, how) -> None:
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    how(table["weight_map"])
    path.write_text(json.dumps(table))


def first(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def other_shard(weight_map: dict[str, str]) -> None:
    name = sorted(weight_map)[0]
    weight_map[name] = sorted({*weight_map.values()} - {weight_map[name]})[0]


def twice_in_shards(folder: Path) -> None:
    one, two = sorted(folder.glob("model-*.safetensors"))
    name, tensor = next(iter(read(one).items()))
    write(two, {**read(two), name: tensor})


SHARDS: dict[str, Callable[[Path], None]] = {
    "missing shard": lambda d: first(d).unlink(),
    "stray shard": lambda d: shutil.copy(first(d), d / "model-00003-of-00003.safetensors"),
    "index names a tensor nobody has": lambda d: index(d, lambda m: m.update(ghost=first(d).name)),
    "index forgets a tensor": lambda d: index(d, lambda m: m.popitem()),
    "index names the other shard": lambda d: index(d, other_shard),
    "index points elsewhere": lambda d: index(d, lambda m: m.update({next(iter(m)): "../x.safetensors"})),
    "a tensor in two shards": twice_in_shards,
    "index is no JSON": lambda d: (d / "model.safetensors.index.json").write_text("{"),
    "no index": lambda d: (d / "model.safetensors.index.json").unlink(),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_damaged_indices_are_rejected(copy, kind):
    weight_files.shard(copy)
    assert inspect(copy).ok
    SHARDS[kind](copy)
    with pytest.raises(WeightMismatch, match="W3 "):
        load_weights(copy)


def test_the_shard_of_another_model_is_rejected(good, copy, tmp_path):
    """Of another size by W8; of the same size only with a manifest."""
    weight_files.shard(copy)
    same = weight_files.shard(weight_files.folder(tmp_path / "same", good[0], seed=1))
    other = weight_files.shard(weight_files.folder(tmp_path / "other", good[0], vocab_size=48))
    shutil.copy(first(same), first(copy))
    assert failed(inspect(copy)) == set()
    assert failed(inspect(copy, expected=good[2])) == {"W11"}
    for file in other.glob("model-*.safetensors"):
        if any("embedding" in name for name in read_files([file])[0]):
            shutil.copy(file, copy / file.name)
    assert failed(inspect(copy)) == {"W8"}


# --- damage to what stands beside the weights

WIDTH = {"kssm": "d_model"}
DEPTH = {"kssm": "n_layers"}


def config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CONFIGURATION: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "no JSON": (lambda d, f: (d / "config.json").write_text("{"), "W6"),
    "another architecture": (lambda d, f: config(d, model_type="llama"), "W6"),
    "a size in words": (lambda d, f: config(d, vocab_size="many"), "W6"),
    "a billion blocks": (lambda d, f: config(d, **{DEPTH.get(f, "num_hidden_layers"): 10**9}), "W6"),
    "one block more": (lambda d, f: config(d, **{DEPTH.get(f, "num_hidden_layers"): 4}), "W7"),
    "one block less": (lambda d, f: config(d, **{DEPTH.get(f, "num_hidden_layers"): 2}), "W7"),
    # Mamba-2 says its width twice, and the two then differ.
    "another width": (lambda d, f: config(d, **{WIDTH.get(f, "hidden_size"): 24}), "W[68]"),
    "another vocabulary": (lambda d, f: config(d, vocab_size=41), "W8"),
}


@pytest.mark.parametrize("kind", CONFIGURATION)
def test_a_wrong_configuration_is_rejected(good, copy, kind):
    damage, check = CONFIGURATION[kind]
    damage(copy, good[0])
    with pytest.raises(WeightMismatch, match=rf"{check} "):
        load_weights(copy)


def test_a_head_that_is_not_the_embedding_it_is_tied_to_is_rejected(good, copy):
    tensors = read(copy)
    head = "head.weight" if good[0] in ("rwkv", "kssm") else "lm_head.weight"
    tied = {"tie_embeddings" if good[0] == "kssm" else "tie_word_embeddings": True}
    config(copy, **tied)
    write(copy / "model.safetensors", {**tensors, head: tensors[embedding(tensors)]})
    assert failed(inspect(copy)) == set()
    write(
        copy / "model.safetensors", change(tensors | {head: tensors[embedding(tensors)]}, head, np.negative)
    )
    assert failed(inspect(copy)) == {"W10"}


def test_a_wrong_tokenizer_is_rejected(copy):
    """Forty rows: byte ids run past them; forty characters fit."""
    CharTokenizer("".join(sorted("abcdefghijklmnopqrstuvwxyz .,;:!?'-ABCDE"))).save(copy)
    assert open_model(copy).tokenizer.vocab_size == 40
    ByteTokenizer().save(copy)
    with pytest.raises(WeightMismatch, match="W20 "):
        open_model(copy)


def test_files_that_are_not_the_hubs_are_rejected(copy):
    found = inspect(copy, promised={"model.safetensors": "0" * 64})
    assert failed(found) == {"W12"}


# --- pickles

HOSTILE: dict[str, tuple[bytes, str]] = {
    "a shell command": (b"cposix\nsystem\n(X\x02\x00\x00\x00ls" + b"tR0", "posix.system"),
    "a builtin": (b"c__builtin__\neval\n(X\x01\x00\x00\x001tR0", "__builtin__.eval"),
    "a name on the stack": (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93(tR0", "os.system"),
    "an instance": (b"(X\x02\x00\x00\x00lsiposix\nsystem\n0", "INST"),
    "an extension": (b"\x82\x010", "EXT1"),
    "a new object": (b"ccollections\nOrderedDict\n)\x810", "NEWOBJ"),
    "attributes on a function": (b"ccollections\nOrderedDict\n}b0", "attributes"),
    "a storage called": (b"ctorch\nFloatStorage\n)R0", "torch.FloatStorage"),
    "another reference": (b"(X\x06\x00\x00\x00moduleK\x01K\x01K\x01K\x01tQ0", "not a storage"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_by_name_and_never_run(copy, kind, monkeypatch):
    monkeypatch.setattr("os.system", lambda *a: pytest.fail("executed"))
    extra, named = HOSTILE[kind]
    tensors = read(copy)
    (copy / "model.safetensors").unlink()
    weight_files.write_torch(copy / "pytorch_model.bin", tensors, weight_files.torch_pickle(tensors, extra))
    with pytest.raises(WeightMismatch, match="W4 pickle safety") as e:
        load_weights(copy)
    assert named in str(e.value) and failed(inspect(copy)) == {"W4"}


def torch_copy(folder: Path) -> Path:
    tensors = read(folder)
    (folder / "model.safetensors").unlink()
    weight_files.write_torch(folder / "pytorch_model.bin", tensors)
    return folder / "pytorch_model.bin"


def test_a_bit_flip_in_a_torch_file_is_found_without_a_manifest(copy):
    """The archive has a checksum of every entry; safetensors have none."""
    file = torch_copy(copy)
    assert inspect(copy).ok
    at = file.read_bytes().index(b"archive/data/3") + len("archive/data/3")
    patch(file, at + 2, bytes([file.read_bytes()[at + 2] ^ 1]))
    assert failed(inspect(copy)) == {"W5"}


def test_a_storage_that_is_not_there_is_found(copy):
    file = torch_copy(copy)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"archive/data/2", b"archive/data/x"))
    assert "W2" in failed(inspect(copy))


def test_every_kind_is_counted():
    kinds = [*TENSORS, *BY_DIGEST, *CONTAINER, *SHARDS, *CONFIGURATION, *HOSTILE]
    assert len(kinds) == len(set(kinds)) and len(kinds) + 6 >= 25
