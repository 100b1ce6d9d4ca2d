"""Every reader of the package that takes a file somebody else may have written, with a good file for each."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.tokenizers.factory import load_tokenizer
from kssm_mlx.data.tokenizers.plain import CharTokenizer
from kssm_mlx.data.tokenizers.published import read_ranks
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer
from kssm_mlx.errors import KssmError
from kssm_mlx.experiments.design import load_design
from kssm_mlx.experiments.schedule import require_runnable
from kssm_mlx.experiments.summary import summarize
from kssm_mlx.generation import generate, load_state, save_state
from kssm_mlx.generation.state import require_fit
from kssm_mlx.parsing import parse_toml
from kssm_mlx.reports.card import write_card
from kssm_mlx.reports.claims import state_claims
from kssm_mlx.reports.comparison import summary
from kssm_mlx.reports.experiment import markdown
from kssm_mlx.reports.run import open_run
from kssm_mlx.runner.folder import read_run_recipe
from kssm_mlx.runner.load import load
from kssm_mlx.runs import layout, lock, records
from kssm_mlx.terminal import printable
from kssm_mlx.training import recipe as recipes
from kssm_mlx.training.checkpoints.checkpoint import Snapshot, load_latest, save
from kssm_mlx.training.checkpoints.checkpoint import load as load_checkpoint
from kssm_mlx.weights import side_files
from kssm_mlx.weights.audit.findings import Finding, failures
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.audit.manifest import read_manifest, write_manifest
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.safetensors_header import read_safetensors
from kssm_mlx.weights.io.torch_archive import check_archive, read_torch
from kssm_mlx.weights.naming.name_map import configuration, skeleton
from tests.support import weight_files
from tests.support.generation_fakes import Counting, endless
from tests.support.tokenizer_kinds import byte_level, llama, word_piece, world

QUESTION = """
[run]
seeds = [0, 1]
set = { "train.steps" = 4 }
[arms.a]
[arms.b]
set = { "train.learning_rate" = 1e-3 }
[[claim]]
arm = "a"
against = "b"
rule = "lower"
"""
RESULTS = "".join(
    json.dumps(row) + "\n"
    for row in (
        {
            "kind": "design",
            "name": "q",
            "digest": "d",
            "fixed": "t",
            "file": "",
            "design": parse_toml(QUESTION),
        },
        *(
            {"kind": "run", "arm": arm, "seed": seed, "metrics": {"nats_per_token": 2.0 + seed / 9}}
            | {"units": {"nats_per_token": [1.0, 2.0]}, "curve": [[1, 2.5]], "checks": {"pass": ["C1"]}}
            for seed in (0, 1)
            for arm in "ab"
        ),
    )
)
RUN = Path(__file__).parents[1] / "runs" / "run-0.1.0"


class Reader(NamedTuple):
    """make: writes good files into a folder and gives the one that is damaged; read: what is tried."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    text: bool = True


def _model(path: Path, family: str = "mamba", **changes) -> Path:
    return weight_files.folder(path / "m", family, **changes)


def _config(family: str) -> Reader:
    def read(path: Path) -> object:
        container = open_container(path.parent)
        _sound(container.findings)
        return skeleton(configuration(container), container)

    return Reader(lambda folder: _model(folder, family) / "config.json", read)


def _sound(findings: list[Finding]) -> None:
    """Raises: KssmError with the first of them."""
    for finding in findings:
        raise KssmError(str(finding))


def _torch(path: Path) -> None:
    _sound(read_torch(path)[1])
    _sound(check_archive(path, lambda n: None))


def _pickle(folder: Path) -> Path:
    tensors = weight_files.read(_model(folder))
    (folder / "data.pkl").write_bytes(weight_files.torch_pickle(tensors))
    return folder / "data.pkl"


def _read_pickle(path: Path) -> None:
    """In an archive that is whole otherwise."""
    tensors = weight_files.read(path.parent / "m")
    weight_files.write_torch(path.with_suffix(".pth"), tensors, path.read_bytes())
    _sound(read_torch(path.with_suffix(".pth"))[1])


def _written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def _hf(kind, folder: Path) -> Path:
    kind().backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


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


def _pointer(folder: Path) -> Path:
    """The LATEST of a folder with a good checkpoint, beside a folder that is none of the run's."""
    (folder / "victim").mkdir()
    tensors = {"model": {"w": mx.zeros(3)}}
    save(folder / "checkpoints", Snapshot(step=4, tensors=tensors, state={}))
    return folder / "checkpoints/LATEST"


def _resumed(path: Path) -> None:
    """Whatever LATEST says: the good checkpoint is taken, and what is beside the run is left alone."""
    found = load_latest(path.parent)
    if found is None or found.snapshot.step != 4 or not (path.parents[1] / "victim").is_dir():
        raise AssertionError(f"resumed from {found}")


def _whole_run(folder: Path) -> Path:
    return Path(shutil.copytree(RUN, folder / "run"))


def _read_run(path: Path) -> object:
    """As a report and as every command that opens its model read it."""
    folder = next(parent for parent in path.parents if parent.name == "run")
    run = open_run(folder)
    write_card(run)
    printable(summary([run, open_run(RUN)]))
    printable("".join(state_claims([run, open_run(RUN)])))
    return load(folder)


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
    "safetensors": Reader(
        lambda f: _model(f) / "model.safetensors", lambda p: _sound(read_safetensors(p)[1])
    ),
    "index": Reader(_index, lambda p: _sound(open_container(p.parent).findings)),
    "torch archive": Reader(_blinkdl, _torch, text=False),
    "pickle": Reader(_pickle, _read_pickle, text=False),
    "BlinkDL": Reader(_blinkdl, lambda p: _sound(failures(inspect(p).findings)), text=False),
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
    "experiment": Reader(_written("q.toml", QUESTION), lambda p: require_runnable(load_design(p)[0])),
    "results.jsonl": Reader(_written("results.jsonl", RESULTS), lambda p: markdown(summarize(p), [])),
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
    "LATEST": Reader(_pointer, _resumed),
    **{
        f"checkpoint's {name}": Reader(
            lambda f, name=name: _pointer(f).parent / "step_00000004" / name,
            lambda p: load_checkpoint(p.parent),
        )
        for name in ("state.json", "manifest.json")
    },
    **{
        f"a run's {name}": Reader(lambda f, name=name: _whole_run(f) / name, _read_run)
        for name in ("recipe.json", "manifest.json", "checks.json", "samples.jsonl", "data/index.json")
    },
    "BEST": Reader(_run("checkpoints/BEST", "step_00000004"), lambda p: layout.pick_checkpoint(p.parents[1])),
}
