"""Weight files of every layout as one thing: names, where each tensor is, and what is wrong with the files.

hf            config.json with model_type, model.safetensors or shards with an index (or pytorch_model.bin)
state-spaces  config.json with d_model and n_layer, pytorch_model.bin
blinkdl       one .pth or .safetensors with emb.weight and blocks.N.att.*, no configuration
run           a run folder or one checkpoint of ours
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kssm_mlx.errors import ConfigError
from kssm_mlx.parsing import parse_json
from kssm_mlx.runs.layout import find_run, pick_checkpoint
from kssm_mlx.runs.records import read_manifest, read_recipe
from kssm_mlx.weights.audit.findings import Finding, failures, list_some
from kssm_mlx.weights.io.safetensors_header import read_safetensors
from kssm_mlx.weights.io.tensors import TensorInfo
from kssm_mlx.weights.io.torch_archive import check_archive, read_torch

Layout = Literal["hf", "state-spaces", "blinkdl", "run"]
TORCH = (".pth", ".pt", ".bin")
BESIDE = (".json", ".jinja", ".txt", ".model")
WRAPPERS = ("module.", "_forward_module.", "_orig_mod.", "model.")
_BLINKDL = re.compile(r"blocks\.\d+\.att\.")
STEMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


@dataclass(frozen=True)
class Container:
    """path: as given; folder: where the files beside the weights are; config: config.json (a run's
    configuration), None where there is none; digests: name -> digest, where a manifest of ours lies beside.
    """

    path: Path
    folder: Path
    layout: Layout
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any] | None
    findings: tuple[Finding, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted(self.tensors)

    @property
    def nbytes(self) -> int:
        """Of all tensors together."""
        return sum(t.nbytes for t in self.tensors.values())

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def read(self, name: str):
        """One tensor as an MLX array in memory."""
        return self.info(name).array(self.info(name).map())

    def check_archives(self, progress: Callable[[int], None] = lambda n: None) -> list[Finding]:
        """W5, which reads every byte of torch files; safetensors have no checksums of their own."""
        archives = [f for f in self.files if f.suffix in TORCH]
        return [finding for file in archives for finding in check_archive(file, progress)]


def open_container(path: str | Path) -> Container:
    """The weights at a path: a folder or a single file. Damage becomes findings (W1 to W4, W6), not errors.

    Raises: ConfigError for a path that is not there or that has no weights to look at.
    """
    path = Path(path).expanduser()
    if not path.exists() and not path.is_symlink():
        raise ConfigError(f"no file or folder {path}")
    refuse_broken_links(path if path.is_dir() else path.parent, [path.name])
    if path.is_file():
        if path.suffix not in (*TORCH, ".safetensors"):
            raise ConfigError(f"{path} is no weight file; {', '.join((*TORCH, '.safetensors'))} are read")
        return _assemble(path, path.parent, [path], [])
    # First: a run folder has weights of its own names, and more than one file of them.
    if found := _open_run(path):
        return found
    files, findings = _weight_files(path)
    return _assemble(path, path, files, findings)


def refuse_broken_links(folder: Path, more: Iterable[str] = ()) -> None:
    """Raises: ConfigError for a file of a model that is a link to nothing, as in a cache that was cleaned."""
    names = {*more, *(p.name for p in folder.iterdir() if p.suffix in (*TORCH, ".safetensors", *BESIDE))}
    for link in sorted(folder / name for name in names):
        if link.is_symlink() and not link.exists():
            raise ConfigError(
                f"{link} is a link to {os.readlink(link)}, which is not there; restore it, or get the model "
                "again"
            )


def _unwrap(tensors: dict[str, TensorInfo]) -> tuple[dict[str, TensorInfo], list[Finding]]:
    """The names without what a wrapper of the training put before every one of them, and a word about it.

    "model." is part of the names in some layouts, and taken off before BlinkDL's only.
    """
    taken = ""
    while prefix := next((p for p in WRAPPERS if tensors and all(n.startswith(p) for n in tensors)), None):
        inner = {name.removeprefix(prefix): info for name, info in tensors.items()}
        if prefix == "model." and not any(_BLINKDL.search(name) for name in inner):
            break
        tensors, taken = inner, taken + prefix
    said = f"every name began with {taken!r}, the mark of a wrapper, which was taken off"
    return tensors, [Finding("W7", said, "none is needed", warning=True)] if taken else []


def _assemble(path: Path, folder: Path, files: list[Path], findings: list[Finding]) -> Container:
    tensors, wrong = read_files(files)
    tensors, said = _unwrap(tensors)
    findings = findings + wrong + said
    if any(_BLINKDL.match(name) for name in tensors):
        return Container(path, folder, "blinkdl", tuple(files), tensors, None, tuple(findings))
    config, wrong = _config(folder, needed=not failures(findings))
    # The original Mamba files name their sizes `d_model`, and no model type.
    layout = "hf" if config is None or "model_type" in config or "d_model" not in config else "state-spaces"
    return Container(path, folder, layout, tuple(files), tensors, config, (*findings, *wrong))


def read_files(files: list[Path]) -> tuple[dict[str, TensorInfo], list[Finding]]:
    """All tensors of several files, with the findings of each and the names that are in two of them."""
    tensors: dict[str, TensorInfo] = {}
    findings: list[Finding] = []
    for file in files:
        if not file.is_file():  # a pipe would be waited for, for ever
            raise ConfigError(f"{file} is not a file; weights are read from files")
        try:
            found, wrong = read_torch(file) if file.suffix in TORCH else read_safetensors(file)
        except OSError as e:
            raise ConfigError(f"cannot read {file}: {(e.strerror or str(e)).lower()}") from None
        twice = sorted(found.keys() & tensors.keys())
        findings += wrong
        if twice:
            findings.append(Finding("W3", f"{list_some(twice)} in {file.name} and in another shard"))
        tensors |= found
    return tensors, findings


def _weight_files(folder: Path) -> tuple[list[Path], list[Finding]]:
    """The files that hold a folder's weights, and W3 where an index and the files disagree.

    Raises: ConfigError if there are none, or several without an index.
    """
    for stem, suffix in STEMS:
        index = folder / f"{stem}{suffix}.index.json"
        files = sorted(p for p in folder.glob(f"{stem}*{suffix}"))
        if index.is_file():
            return _read_index(index, files)
        if len(files) == 1:
            return files, []
        if files:
            return files, [Finding("W3", f"{list_some(f.name for f in files)}, and no {index.name}")]
    files = sorted(p for p in folder.iterdir() if p.suffix in (*TORCH, ".safetensors"))
    if len(files) == 1:
        return files, []
    if files:
        raise ConfigError(f"{folder} has {list_some(f.name for f in files)}; name the file you mean")
    raise ConfigError(f"{folder} has no weights: no .safetensors, .bin or .pth, and it is no run folder")


def _read_index(index: Path, files: list[Path]) -> tuple[list[Path], list[Finding]]:
    """The files of an index that are there, and every disagreement, in both directions."""
    try:
        stated = parse_json(index.read_text("utf-8"))["weight_map"]
        wanted = {name: str(file) for name, file in stated.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return files, [Finding("W3", f"{index.name} is not an index: {type(e).__name__} {e}")]
    findings = []
    # A name with a folder in it could be any file of the disk.
    outside = sorted({file for file in wanted.values() if Path(file).name != file})
    if outside:
        return files, [Finding("W3", f"{index.name} points out of its folder, to {list_some(outside)}")]
    there = {f.name: f for f in files}
    if absent := sorted(set(wanted.values()) - there.keys()):
        findings.append(Finding("W3", f"{index.name} names {list_some(absent)}, which is not there"))
    if stray := sorted(there.keys() - set(wanted.values())):
        findings.append(Finding("W3", f"{list_some(stray)} is there, and {index.name} does not know it"))
    held = {name: file.name for file in files for name in read_files([file])[0]}
    if lost := sorted(wanted.keys() - held.keys()):
        findings.append(Finding("W3", f"{index.name} names {list_some(lost)}, which no shard has"))
    if unknown := sorted(held.keys() - wanted.keys()):
        findings.append(Finding("W3", f"{list_some(unknown)} in the shards, unknown to {index.name}"))
    if moved := sorted(n for n in held.keys() & wanted.keys() if held[n] != wanted[n]):
        findings.append(Finding("W3", f"{list_some(moved)} in {held[moved[0]]}, not in {wanted[moved[0]]}"))
    return files, findings


def _config(folder: Path, needed: bool) -> tuple[dict[str, Any] | None, list[Finding]]:
    """config.json. Raises: ConfigError if it is needed and not there."""
    path = folder / "config.json"
    if not path.is_file():
        if needed:
            raise ConfigError(f"no config.json in {folder}; only BlinkDL's RWKV files do without one")
        return None, []
    try:
        config = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        return None, [Finding("W6", f"config.json is not JSON: {e}")]
    if not isinstance(config, dict):
        return None, [Finding("W6", "config.json is not a table")]
    return config, []


def _open_run(folder: Path) -> Container | None:
    """The best checkpoint of a run folder (the latest where none is marked), or a checkpoint of one."""
    run = find_run(folder)
    if run is None:
        return None
    checkpoint = pick_checkpoint(run) if run == folder else folder
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"checkpoint {checkpoint} has no model.safetensors: a run of adapters?")
    tensors, findings = read_files([weights])
    config = read_recipe(run).get("configuration")
    digests = read_manifest(checkpoint).get("tensors", {}).get("model", {})
    return Container(folder, run, "run", (weights,), tensors, config, tuple(findings), digests)
