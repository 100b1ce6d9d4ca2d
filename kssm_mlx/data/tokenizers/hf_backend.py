"""A `tokenizer.json` of the Hugging Face `tokenizers` library behind our protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kssm_mlx.data.tokenizers.protocol import MOST_IDS, DescribedTokenizer, encode_utf8
from kssm_mlx.errors import DataError, KssmError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[SEP]", "<|im_end|>")
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class HFTokenizer(DescribedTokenizer):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, which is kept whole in our own file.

    template: whether a prompt gets what the file's post-processor puts around a text, such as `<s>`. A run of
    ours was trained without, so its prompts do without.
    """

    def __init__(self, content: str, name: str, *, template: bool = True):
        self.name, self.template = name, template
        self.backend = _backend(content, name)
        self.backend.no_truncation()  # saved settings would silently cut documents at, say, 512 tokens
        self.backend.no_padding()
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        if not self.backend.get_vocab(with_added_tokens=False):
            raise DataError(f"{name} is a tokenizer with an empty vocabulary; get the file again")
        _refuse_vocabulary(vocabulary, name)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.separator_id = next((vocabulary[t] for t in END_OF_TEXT if t in vocabulary), None)
        if '"ByteFallback"' in content:
            self.byte_ids = frozenset(id for token, id in vocabulary.items() if _BYTE.fullmatch(token))

    def id_of(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def encode(self, text: str) -> np.ndarray:
        return self._encode(text, special=False)

    def encode_special(self, text: str) -> np.ndarray:
        return self._encode(text, special=True)

    def encode_prompt(self, text: str) -> np.ndarray:
        """The text's ids, with the post-processor's around them unless the text has them already."""
        plain = self._encode(text, special=True)
        if not self.template:
            return plain
        whole = self._encode(text, special=True, template=True)
        extra = len(whole) - len(plain)
        places = (i for i in range(extra + 1) if np.array_equal(whole[i : i + len(plain)], plain))
        at = next(places, None)
        if at is None:  # a post-processor that changes more than the ends
            return whole
        before, after = whole[:at], whole[at + len(plain) :]
        before = before[:0] if _begins_with(plain, before) else before
        after = after[:0] if _begins_with(plain[::-1], after[::-1]) else after
        return np.concatenate([before, plain, after])

    def decode(self, ids: Sequence[int]) -> str:
        with _explain_errors(self.name):
            return self.backend.decode(self._in_range(ids).tolist(), skip_special_tokens=False)

    def describe(self) -> dict[str, Any]:
        return {"kind": "hf", "content": json.loads(self.backend.to_str())}

    def _encode(self, text: str, *, special: bool, template: bool = False) -> np.ndarray:
        encode_utf8(text)
        self.backend.encode_special_tokens = not special
        with _explain_errors(self.name):
            return np.array(self.backend.encode(text, add_special_tokens=template).ids, dtype=np.int32)


def _backend(content: str, name: str) -> Any:
    """The library's tokenizer. Raises: DataError for whatever it cannot read."""
    from tokenizers import Tokenizer as Backend

    with _explain_errors(name, "is not a Hugging Face tokenizer.json"):
        return Backend.from_str(content)


@contextmanager
def _explain_errors(name: str, what: str = "cannot be used on this text") -> Iterator[None]:
    """The library raises bare Exception for anything it cannot do, such as a word without an unknown token,
    and a PanicException, which is no Exception, where its own code fails.

    Raises: DataError.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, KssmError):
        raise
    except BaseException as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise DataError(f"{name} {what}: {reason[:200]}") from None


def _refuse_vocabulary(vocabulary: dict[str, int], name: str) -> None:
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= MOST_IDS:
        raise DataError(
            f"{name} has token {token[:40]!a} under id {vocabulary[token]:,}; ids below {MOST_IDS:,} are read"
        )


def _begins_with(ids: np.ndarray, with_ids: np.ndarray) -> bool:
    return len(with_ids) > 0 and np.array_equal(ids[: len(with_ids)], with_ids)
