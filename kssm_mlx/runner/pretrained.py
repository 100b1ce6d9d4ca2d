"""Models that others trained, or that we exported: opened after verification only, with their tokenizer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import mlx.core as mx

from kssm_mlx.checks.pretrained.arithmetic import judge_vocabulary
from kssm_mlx.data.tokenizers.factory import load_tokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokenizers.protocol import FILE, DescribedTokenizer, Tokenizer
from kssm_mlx.data.tokenizers.rwkv_world import VOCABULARY, WorldTokenizer
from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.models.base import Trained
from kssm_mlx.weights.audit.inspect import Meter
from kssm_mlx.weights.audit.manifest import Manifest
from kssm_mlx.weights.audit.shipped_manifests import shipped_manifests
from kssm_mlx.weights.hub.resolve import Resolved, resolve
from kssm_mlx.weights.io.container import Container
from kssm_mlx.weights.loader import load_weights
from kssm_mlx.weights.side_files import ends_of_text


def open_model(
    source: str | Path, *, verify: bool = True, dtype: mx.Dtype | None = None, meter: Meter | None = None
) -> Trained:
    """The model of a folder, a weight file or a repository, after L0 to L3, with its tokenizer if it has one.

    verify: False notes what was found and goes on. dtype: of the weights, by default that of the files.
    Raises: WeightMismatch naming the failed checks; ConfigError for what is no model, or cannot be had.
    """
    resolved = resolve(source)
    loaded = load_weights(
        resolved.path,
        verify=verify,
        dtype=dtype,
        expected=find_manifest(resolved).digests,
        promised=resolved.sha256,
        meter=meter,
    )
    notes = {**loaded.notes, "revision": resolved.revision, "path": str(loaded.inspection.container.folder)}
    rows = loaded.config.vocab_size
    tokenizer = tokenizer_of(loaded.inspection.container, rows, find_manifest(resolved))
    if tokenizer is None:
        notes["hint"] = f"no tokenizer for {rows:,} embedding rows: put its tokenizer.json beside the weights"
    elif verify:
        _refuse_other_tokenizer(tokenizer, rows, source)
    if tokenizer and (ends := ends_of_text(loaded.inspection.container.folder, tokenizer.id_of)):
        tokenizer.stop_ids = ends
    return Trained(loaded.model, tokenizer, str(source), loaded.digest, notes)


def find_manifest(resolved: Resolved) -> Manifest:
    """What the package knows of a repository; nothing of a path."""
    return shipped_manifests().get(resolved.repo or "") or Manifest()


def tokenizer_of(container: Container, rows: int, known: Manifest) -> DescribedTokenizer | None:
    """The tokenizer beside the weights; without one, bytes where the embedding has 256 rows, else the one the
    manifest names, from its own repository; None where that cannot be had.
    """
    folder = container.folder / "data" if container.layout == "run" else container.folder
    if (folder / FILE).is_file():
        return load_tokenizer(folder)
    if (folder / VOCABULARY).is_file():
        return WorldTokenizer.from_file(folder)
    if rows == 256:
        return ByteTokenizer()
    if known.tokenizer is None or known.tokenizer.repo is None:
        return None
    with suppress(ConfigError):  # offline: L5 and the hint say that there is none
        return load_tokenizer(resolve(f"{known.tokenizer.repo}/{FILE}").path.parent)
    return None


def _refuse_other_tokenizer(tokenizer: Tokenizer, rows: int, source: str | Path) -> None:
    """Raises: WeightMismatch for ids that the embedding has no rows for, or has for another tokenizer."""
    c = judge_vocabulary(tokenizer, rows)
    if not c.ok:
        raise WeightMismatch(f"{source}: {c.id} {c.title}: {c.got}; expected {c.expected}. Fix: {c.fix}")
