"""Which tokenizer: of a word such as "bytes" or "bpe:16384", or of a file that one was saved into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kssm_mlx.data.tokenizers.bpe import train_bpe
from kssm_mlx.data.tokenizers.control_chars import ControlCharTokenizer
from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.huggingface import match_own_tokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer, IdTokenizer
from kssm_mlx.data.tokenizers.protocol import (
    FILE,
    FORMAT,
    MOST_IDS,
    DescribedTokenizer,
    Documents,
    encode_utf8,
    read_tokenizer_file,
)
from kssm_mlx.data.tokenizers.published import load_published
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer
from kssm_mlx.errors import ConfigError, DataError, nearest
from kssm_mlx.parsing import parse_json

WORDS = ("bytes", "chars", "chars-reserved")
NAMED = ("gpt2", "cl100k", "neox")  # tokenizers that models were published with: data/tokenizers/published.py


def make_tokenizer(
    spec: str,
    documents: Documents | None = None,
    train: Documents | None = None,
    *,
    special_tokens: bool = False,
) -> DescribedTokenizer:
    """The tokenizer of a word or of a file.

    bytes                           the 256 bytes
    chars, chars-reserved           the characters of `documents`, alone or behind 32 reserved ids
    bpe:16384                       as many tokens as that, learned from `train`, the side that is trained on
    hf:PATH|REPO, world:PATH        a tokenizer.json, RWKV's vocabulary
    gpt2:, cl100k:, neox:PATH       a file that must have the number of tokens of that name

    special_tokens: whether the special tokens that stand in a document are tokens, not characters.
    Raises: ConfigError for another word or a corpus that is missing, DataError for a file that cannot be
        had or is another tokenizer.
    """
    require_known_tokenizer(spec)
    kind, _, target = spec.partition(":")
    documents = documents or []
    if spec == "bytes":
        return ByteTokenizer()
    if spec in ("chars", "chars-reserved", f"bpe:{target}") and not documents:
        raise ConfigError(f"tokenizer {spec!r} is built from a corpus; give documents, or use 'bytes'")
    if spec == "chars":
        return CharTokenizer.from_documents(documents)
    if spec == "chars-reserved":
        return ControlCharTokenizer.from_documents(documents, special_tokens=special_tokens)
    if kind == "bpe":
        return train_bpe(documents if train is None else train, int(target))
    if kind == "hf":
        return _huggingface(_hf_content(target), spec)
    if kind == "world":
        return WorldTokenizer.from_file(target, spec)
    return load_published(kind, target)


def require_known_tokenizer(spec: str) -> None:
    """Raises: ConfigError for a word that names no kind of tokenizer; no file is read."""
    kind, _, target = spec.partition(":")
    of_file = kind in ("hf", "world", *NAMED) and target
    if spec in WORDS or of_file or (kind == "bpe" and target.isdecimal()):
        return
    raise ConfigError(
        f"data.tokenizer is {spec!r}; expected bytes, chars, chars-reserved, bpe:SIZE, hf:PATH|REPO, "
        f"world:PATH, {', '.join(f'{name}:PATH' for name in NAMED)}"
        f"{nearest(spec, WORDS)}"
    )


def load_tokenizer(folder: str | Path) -> DescribedTokenizer:
    """The tokenizer saved or exported into `folder` by us, or a plain Hugging Face `tokenizer.json`.

    Raises: DataError for a missing or broken file, or one whose digest is not that of its content.
    """
    path = Path(folder) / FILE
    content = read_tokenizer_file(path)
    try:
        table = parse_json(content)
    except ValueError as e:
        raise DataError(f"{path} is not JSON: {e}") from None
    if isinstance(table, dict) and "model" in table:
        return _huggingface(content, f"hf:{folder}")
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise DataError(f"{path} is no tokenizer of ours ({FORMAT}) and no Hugging Face tokenizer.json")
    try:
        tokenizer = _from_description(table["tokenizer"], _text(table["name"]))
        digest = _text(table["digest"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise DataError(f"{path} is incomplete ({e}); restore it or prepare the data again") from None
    if tokenizer.digest != digest:
        raise DataError(
            f"{path} was changed: its content has digest {tokenizer.digest[:12]}, the file says "
            f"{digest[:12]}; restore it or prepare the data again"
        )
    return tokenizer


def _from_description(described: dict[str, Any], name: str) -> DescribedTokenizer:
    if described["kind"] == "hf":
        return HFTokenizer(json.dumps(described["content"]), name, template=False)
    if described["kind"] == "rwkv-world":
        return WorldTokenizer.from_description(described, name)
    if described["kind"] == "ids":
        return IdTokenizer(_count(described["vocab_size"]))
    if described["kind"] == "bytes":
        return ByteTokenizer()
    kinds = {"chars": CharTokenizer, "chars-reserved": ControlCharTokenizer}
    return kinds[described["kind"]](_characters(described["characters"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    encode_utf8(value)
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < MOST_IDS:
        raise ValueError(f"a vocabulary of {str(value)[:40]} tokens")
    return value


def _characters(value: Any) -> str:
    """Each once, rising by code point, which is how their ids are found."""
    if "".join(sorted(set(_text(value)))) != value:
        raise ValueError("its characters are not in order")
    return value


def _huggingface(content: str, name: str) -> DescribedTokenizer:
    """The tokenizer of a tokenizer.json: bytes or characters where it is an export of ours."""
    tokenizer = HFTokenizer(content, name)
    try:
        return match_own_tokenizer(parse_json(content)) or tokenizer
    except ValueError as e:
        raise DataError(f"{name} is not a Hugging Face tokenizer.json: {e}") from None


def _hf_content(target: str) -> str:
    """tokenizer.json from a file, a folder or, if there is no such path, a repository on the hub."""
    path = Path(target).expanduser()
    if path.is_dir():
        return read_tokenizer_file(path / FILE)
    if path.exists() or target.startswith((".", "/", "~")) or target.endswith(".json"):
        return read_tokenizer_file(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its report of each new attempt says nothing that the one line below lacks
    try:
        return read_tokenizer_file(Path(hf_hub_download(target, FILE)))
    except (OSError, ValueError) as e:  # the library's errors are of these kinds
        reason = str(e).strip().split("\n")[0]
        raise DataError(f"no tokenizer {target!r}: not a path, and the hub says: {reason}") from None
