"""Our tokenizers as files of Hugging Face's libraries, with the same ids, and those files back as ours.

bytes   a BPE without merges over the byte alphabet, ids the byte values; NUL is the end of a text
chars   a BPE without merges over the characters; what is not among them is dropped, where ours refuses it
chars-reserved   the same behind the control tokens and the ids kept free; what is not among them is <|unk|>
hf      the tokenizer.json it was made from; of a run, whose prompts get nothing put around them, without
        the post-processor that puts it there
"""

from __future__ import annotations

import json
from typing import Any

from kssm_mlx.data.tokenizers.control_chars import CONTROL, RESERVED, UNKNOWN, ControlCharTokenizer
from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokenizers.protocol import DescribedTokenizer, Tokenizer
from kssm_mlx.errors import DataError

NUL = "\0"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """File name -> content: what `AutoTokenizer.from_pretrained` and mlx-lm read in a model's folder.

    Raises: DataError for a tokenizer that their files cannot describe (RWKV World's).
    """
    backend = _backend(tokenizer)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.separator_id is not None:
        settings["eos_token"] = backend.id_to_token(tokenizer.separator_id)
    return {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=1) + "\n",
    }


def match_own_tokenizer(table: dict[str, Any]) -> DescribedTokenizer | None:
    """The byte or character tokenizer that a tokenizer.json describes; None for any other."""
    model = table["model"]
    vocabulary = model.get("vocab")
    if model.get("type") != "BPE" or model.get("merges") or table.get("normalizer"):
        return None
    if vocabulary == _byte_vocabulary():
        return ByteTokenizer()
    if vocabulary.items() >= _reserved_names().items():
        characters = "".join(sorted(vocabulary.keys() - _reserved_names().keys()))
        if vocabulary == _reserved_names() | {c: RESERVED + i for i, c in enumerate(characters)}:
            return ControlCharTokenizer(characters)
    characters = "".join(sorted(vocabulary))
    if vocabulary == {c: i for i, c in enumerate(characters)} and not table.get("pre_tokenizer"):
        return CharTokenizer(characters)
    return None


def _backend(tokenizer: Tokenizer):
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.backend if tokenizer.template else _without_template(tokenizer.backend)
    if isinstance(tokenizer, CharTokenizer):
        backend = Backend(models.BPE({c: i for i, c in enumerate(tokenizer.characters)}, []))
        backend.decoder = decoders.Fuse()
    elif isinstance(tokenizer, ByteTokenizer):
        backend = Backend(models.BPE(_byte_vocabulary(), []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        # In a sequence of one: for a bare ByteLevel mlx-lm drops the first space of what it generates.
        backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    elif isinstance(tokenizer, ControlCharTokenizer):
        characters = {c: RESERVED + i for i, c in enumerate(tokenizer.characters)}
        backend = Backend(models.BPE(_reserved_names() | characters, [], unk_token=CONTROL[UNKNOWN]))
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
        return backend
    else:
        raise DataError(f"a tokenizer.json cannot describe {tokenizer.name}; export without a tokenizer")
    if tokenizer.separator_id is not None:
        backend.add_special_tokens([AddedToken(NUL, special=True, normalized=False)])
    return backend


def _without_template(backend):
    """The same where its post-processor puts nothing around a text, else one without post-processor."""
    if not backend.num_special_tokens_to_add(False):
        return backend
    return type(backend).from_str(json.dumps(json.loads(backend.to_str()) | {"post_processor": None}))


def byte_symbols() -> dict[int, str]:
    """Byte -> the character that stands for it in GPT-2's alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _byte_vocabulary() -> dict[str, int]:
    """The characters that stand for bytes 1 to 255 in GPT-2's alphabet, and NUL, which stands for itself."""
    return {NUL: 0} | {symbol: byte for byte, symbol in byte_symbols().items() if byte}


def _reserved_names() -> dict[str, int]:
    """The control tokens and names for the ids that are kept free."""
    free = (f"<|reserved_{id}|>" for id in range(len(CONTROL), RESERVED))
    return {token: id for id, token in enumerate([*CONTROL, *free])}
