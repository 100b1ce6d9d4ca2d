"""Damaged and hostile files for every reader of the package: a value or a KssmError, and nothing else.

python -m tests.support.fuzz INPUTS SEED [NAME ...]     as many inputs per reader; prints a line for each
"""

from __future__ import annotations

import base64
import copy
import faulthandler
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.tokenizers.factory import load_tokenizer
from kssm_mlx.data.tokenizers.plain import CharTokenizer
from kssm_mlx.data.tokenizers.published import read_ranks
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer
from kssm_mlx.errors import KssmError
from kssm_mlx.generation import generate, load_state, save_state
from kssm_mlx.generation.state import require_fit
from kssm_mlx.runner.folder import read_run_recipe
from kssm_mlx.runs import layout, lock, records
from kssm_mlx.training import recipe as recipes
from kssm_mlx.weights import side_files
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.audit.manifest import read_manifest, write_manifest
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.safetensors_header import read_safetensors
from kssm_mlx.weights.io.torch_archive import check_archive, read_torch
from kssm_mlx.weights.naming.name_map import configuration, skeleton
from tests.support import weight_files
from tests.support.generation_fakes import Counting, endless
from tests.support.tokenizer_kinds import byte_level, llama, word_piece, world

LONGEST = 10.0  # seconds of CPU for one input

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


class Reader(NamedTuple):
    """make: writes good files into a folder and gives the one that is damaged; read: what is tried."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    text: bool = True


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
                    parent[rng.choice(["", "x", "auto_map", "model_file", "quantization"])] = rng.choice(
                        OBJECTS
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


def _model(path: Path, family: str = "mamba", **changes) -> Path:
    return weight_files.folder(path / "m", family, **changes)


def _config(family: str) -> Reader:
    def read(path: Path) -> object:
        container = open_container(path.parent)
        if container.config is not None:
            config = configuration(container)
            return skeleton(config, container)
        return container.findings

    return Reader(lambda folder: _model(folder, family) / "config.json", read)


def _torch(path: Path) -> object:
    tensors, findings = read_torch(path)
    return (tensors, findings) if findings else check_archive(path, lambda n: None)


def _pickle(folder: Path) -> Path:
    tensors = weight_files.read(_model(folder))
    (folder / "data.pkl").write_bytes(weight_files.torch_pickle(tensors))
    return folder / "data.pkl"


def _read_pickle(path: Path) -> object:
    """In an archive that is whole otherwise."""
    tensors = weight_files.read(path.parent / "m")
    weight_files.write_torch(path.with_suffix(".pth"), tensors, path.read_bytes())
    return read_torch(path.with_suffix(".pth"))


def _written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def _tokenizer(path: Path) -> object:
    tokenizer = load_tokenizer(path.parent)
    return tokenizer.decode(tokenizer.encode_prompt("ab c")), tokenizer.digest


def _saved(tokenizer) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tokenizer().save(folder)
        return folder / "tokenizer.json"

    return make


def _state(folder: Path) -> Path:
    save_state(folder / "s", generate(Counting(), endless(), "hello", max_tokens=4)[0].state, "a" * 64)
    return folder / "s"


def _read_state(path: Path) -> object:
    state = load_state(path, "a" * 64)
    require_fit(state, Counting(), 256)
    return generate(Counting(), endless(), [""] * len(state), state=state, max_tokens=1)


def _blinkdl(folder: Path) -> Path:
    tensors = weight_files.tensors_of(weight_files.model("rwkv7"))
    weight_files.write_torch(folder / "x.pth", weight_files.blinkdl(tensors, "rwkv7"))
    return folder / "x.pth"


def _index(folder: Path) -> Path:
    return weight_files.shard(_model(folder)) / "model.safetensors.index.json"


def _set(path: Path) -> object:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return recipes.override(recipes.load("default"), dict([recipes.parse_override(text)]))


def _run(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "run/checkpoints/step_00000004").mkdir(parents=True)
        table = recipes.load("default").model_dump()
        (folder / "run/recipe.json").write_text(json.dumps({**table, "configuration": {}}))
        return _written(name, content or (folder / "run/recipe.json").read_text())(folder / "run")

    return make


def _manifest(folder: Path) -> Path:
    write_manifest(folder / "m.toml", inspect(_model(folder)).manifest())
    return folder / "m.toml"


def _lock(path: Path) -> object:
    with lock.hold(path.parent):
        return path.read_bytes()


ROWS = (
    '{"kind": "train", "step": 1, "loss": 2.5}\n{"kind": "event", "step": 2, "event": "x", "message": "y"}\n'
    * 3
)
RANKS = b"\n".join(base64.b64encode(bytes([b])) + b" %d" % b for b in range(256))
WORLD = "\n".join(f"{b + 1} {bytes([b])!r} 1" for b in range(256)) + "\n257 'the' 3\n258 '\\u4e2d' 3\n"

READERS: dict[str, Reader] = {
    "safetensors": Reader(lambda f: _model(f) / "model.safetensors", read_safetensors),
    "index": Reader(_index, lambda p: open_container(p.parent)),
    "torch archive": Reader(_blinkdl, _torch, text=False),
    "pickle": Reader(_pickle, _read_pickle, text=False),
    "BlinkDL": Reader(_blinkdl, lambda p: inspect(p).ok, text=False),
    "tokenizer.json, byte level": Reader(lambda f: _hf(byte_level, f), _tokenizer),
    "tokenizer.json, byte fallback": Reader(lambda f: _hf(llama, f), _tokenizer),
    "tokenizer.json, word piece": Reader(lambda f: _hf(word_piece, f), _tokenizer),
    "our tokenizer, chars": Reader(_saved(lambda: CharTokenizer(" abc")), _tokenizer),
    "our tokenizer, world": Reader(_saved(world), _tokenizer),
    "our tokenizer, hf": Reader(_saved(byte_level), _tokenizer),
    "World vocabulary": Reader(_written("v.txt", WORLD), WorldTokenizer.from_file),
    "ranks": Reader(_written("x.tiktoken", RANKS), read_ranks),
    "state": Reader(_state, _read_state),
    **{f"config.json, {family}": _config(family) for family in ("mamba", "mamba2", "rwkv", "rwkv7", "kssm")},
    "side files": Reader(
        _written("generation_config.json", '{"eos_token_id": [1, 2], "bos_token_id": 0}'),
        lambda p: side_files.ends_of_text(p.parent, lambda token: None),
    ),
    "recipe": Reader(
        _written("r.toml", recipes.list_shipped()["default"].read_bytes()), lambda p: recipes.load(p)
    ),
    "--set": Reader(_written("set", "train.learning_rate=0.01"), _set),
    "manifest": Reader(_manifest, read_manifest),
    "jsonl": Reader(
        _written("x.jsonl", '{"text": "first one"}\n{"text": "second", "a": [1, {"b": null}]}\n' * 3),
        lambda p: open_corpus(f"jsonl:{p}"),
    ),
    "recipe.json": Reader(
        _run("recipe.json", ""), lambda p: (records.read_recipe(p.parent), read_run_recipe(p.parent))
    ),
    "metrics.jsonl": Reader(_run("metrics.jsonl", ROWS), lambda p: records.read_metrics(p.parent)),
    "run.lock": Reader(_run("run.lock", '{"pid": 999999, "started": "1", "machine": "m"}'), _lock),
    "LATEST": Reader(
        _run("checkpoints/LATEST", "step_00000004"), lambda p: layout.pick_checkpoint(p.parents[1])
    ),
    "BEST": Reader(_run("checkpoints/BEST", "step_00000004"), lambda p: layout.pick_checkpoint(p.parents[1])),
}


def _hf(kind, folder: Path) -> Path:
    kind().backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


class Outcome(NamedTuple):
    inputs: int
    refused: int
    slowest: float  # seconds of CPU


def fuzz(name: str, inputs: int, seed: int) -> Outcome:
    """Raises: AssertionError that names the input, which is kept, for anything but a value or a KssmError."""
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="kssm-fuzz-") as temporary:
        target = reader.make(Path(temporary))
        good = target.read_bytes()
        reader.read(target)
        refused, slowest = 0, 0.0
        for _ in range(inputs):
            raw = mutate(good, rng, reader.text)
            target.write_bytes(raw)
            began = time.process_time()
            try:
                reader.read(target)
            except KssmError as e:
                refused += 1
                said = str(e)
                if "\n" in said.strip() or len(said) > 20_000:
                    raise AssertionError(f"{name}: {len(said)} characters, {_keep(raw)}: {said[:300]}") from e
            except BaseException as e:
                if isinstance(e, KeyboardInterrupt):
                    raise
                raise AssertionError(f"{name}: {type(e).__name__}: {e!s:.300} from {_keep(raw)}") from e
            slowest = max(slowest, time.process_time() - began)
            if slowest > LONGEST:
                raise AssertionError(f"{name}: {slowest:.1f} s of CPU for {_keep(raw)}")
    return Outcome(inputs, refused, slowest)


def _keep(raw: bytes) -> Path:
    with tempfile.NamedTemporaryFile(prefix="kssm-fuzz-failed-", delete=False) as f:
        f.write(raw)
    return Path(f.name)


def main(inputs: int, seed: int, names: list[str]) -> None:
    faulthandler.enable()
    for name in names or READERS:
        try:
            done = fuzz(name, inputs, seed)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{name}: {done.inputs:,} inputs, {done.refused:,} refused, slowest {done.slowest:.2f} s, "
                f"peak {memory:,} MB",
                flush=True,
            )
        except AssertionError as e:
            print("FAILED", e, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
