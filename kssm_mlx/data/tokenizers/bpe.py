"""A byte-level BPE learned from a corpus by the `tokenizers` library, such as the 16k of the hybrid."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.errors import ConfigError, DataError

VOCAB = 16384
SEPARATOR = "<|endoftext|>"
LEAST = 257  # every byte and the separator
LONGEST_WORD = 512
# What GPT-2's pattern takes for one word: letters, digits, or neither.
_LONG = re.compile("|".join(f"{kind}{{{LONGEST_WORD},}}" for kind in (r"[^\W\d_]", r"\d", r"[^\w\s]")))


class _Pieces:
    """Texts cut inside their long words; `cut` counts these."""

    def __init__(self) -> None:
        self.cut = 0

    def of(self, text: str) -> Iterator[str]:
        end = 0
        for word in _LONG.finditer(text):
            self.cut += 1
            for start in range(word.start(), word.end(), LONGEST_WORD):
                yield text[end:start]
                end = start
        yield text[end:]


def train_bpe(documents: Iterable[str], vocab_size: int = VOCAB, name: str | None = None) -> HFTokenizer:
    """The `vocab_size` tokens that GPT-2's method learns: id 0 opens every document, then the 256 bytes, then
    the merges, the most frequent first. The same documents give the same tokenizer.

    Words of more than `LONGEST_WORD` characters (DNA, base64, a minified file) are learned in pieces, since
    the time goes with the square of their length; how many is said on standard error. They are encoded whole.

    Raises: ConfigError for fewer than `LEAST` tokens, DataError for text that does not have so many.
    """
    if vocab_size < LEAST:
        raise ConfigError(
            f"a BPE of {vocab_size} tokens; expected {LEAST}, 256 bytes and {SEPARATOR}, or more"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # First, so that it has id 0 whatever is learned.
        special_tokens=[SEPARATOR],
        # All 256 bytes, also those that the text lacks: no later text is unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    pieces = _Pieces()
    backend.train_from_iterator((piece for text in documents for piece in pieces.of(text)), trainer)
    if pieces.cut:
        print(
            f"bpe: {pieces.cut} word(s) longer than {LONGEST_WORD} characters were learned in pieces",
            file=sys.stderr,
        )
    if backend.get_vocab_size() < vocab_size:
        raise DataError(
            f"the text has only {backend.get_vocab_size()} of {vocab_size} tokens in it; give more text or "
            "ask for a smaller vocabulary"
        )
    return HFTokenizer(backend.to_str(), name or f"bpe:{vocab_size}")
