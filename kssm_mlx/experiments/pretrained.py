"""A model from files that this package did not train, or that it exported: verified, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from kssm_mlx.data.rwkv_world import VOCABULARY, WorldTokenizer
from kssm_mlx.data.tokenizers import FILE, ByteTokenizer, Tokenizer, load_tokenizer
from kssm_mlx.errors import WeightMismatch
from kssm_mlx.models.base import Trained
from kssm_mlx.weights import verified
from kssm_mlx.weights.hub import resolve
from kssm_mlx.weights.loader import load_weights


def open_pretrained(source: str | Path, *, verify: bool = True) -> Trained:
    """The model of a folder, a weight file or a repository, after L0 to L3; `verify=False` is noted.

    Raises: WeightMismatch naming the failed checks; ConfigError for a source without a model.
    """
    files = resolve(source)
    loaded = load_weights(files.path, verify=verify, promised=files.sha256 or None)
    tokenizer = tokenizer_of(loaded.inspection.container.folder, loaded.config.vocab_size)
    notes = {**loaded.notes, "revision": files.revision}
    return Trained(loaded.model, tokenizer, str(source), loaded.digest, notes)


def open_verified(source: str | Path) -> Trained:
    """The same for a model that has passed all of `kssm verify-weights`, with exactly these weights.

    Raises: WeightMismatch for any other, saying what to run.
    """
    passed = verified.is_verified(resolve(source).path, "L5")
    if passed is None:
        raise WeightMismatch(
            f"{source} has not passed verification since its files were last touched; "
            f"run kssm verify-weights {source}"
        )
    opened = open_pretrained(source)
    if opened.digest != passed["root"]:
        raise WeightMismatch(
            f"{source} has root digest {opened.digest[:12]}, but what passed verification had "
            f"{passed['root'][:12]}; run kssm verify-weights {source}"
        )
    return opened


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer beside the weights; without one, bytes where the embedding has 256 rows, else None."""
    if (folder / FILE).is_file():
        return load_tokenizer(folder)
    if (folder / VOCABULARY).is_file():
        return WorldTokenizer.from_file(folder)
    return ByteTokenizer() if vocab_size == 256 else None
