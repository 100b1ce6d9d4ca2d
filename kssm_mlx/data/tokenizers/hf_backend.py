"""A `tokenizer.json` of the Hugging Face `tokenizers` library behind our protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kssm_mlx.data.tokenizers.protocol import DescribedTokenizer, encode_utf8
from kssm_mlx.errors import DataError

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[SEP]", "<|im_end|>")


class HFTokenizer(DescribedTokenizer):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, which is kept whole in our own file."""

    def __init__(self, content: str, name: str):
        from tokenizers import Tokenizer as Backend

        try:
            self.backend = Backend.from_str(content)
        except Exception as e:  # the library raises bare Exception for any unusable file
            raise DataError(f"{name} is not a Hugging Face tokenizer.json: {e}") from None
        self.backend.no_truncation()  # saved settings would silently cut documents at, say, 512 tokens
        self.backend.no_padding()
        self.name = name
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.separator_id = next((vocabulary[t] for t in END_OF_TEXT if t in vocabulary), None)

    def encode(self, text: str) -> np.ndarray:
        encode_utf8(text)
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(self._in_range(ids).tolist(), skip_special_tokens=False)

    def describe(self) -> dict[str, Any]:
        return {"kind": "hf", "content": json.loads(self.backend.to_str())}
