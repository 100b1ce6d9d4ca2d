"""One small tokenizer of each kind that the `tokenizers` library knows, and ours, for tests of text."""

from __future__ import annotations

import random
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer

TEXT = "the cat sat on the mat, and the dog said: hello there! It isn't 中文 or naïve. 東京 👍 x" * 3
ALPHABET = [
    *"abcdefgh ",
    *"  \n,.'!",
    *"éßñ",
    *"中文東京日本",
    *"👍🏽🧪",
    "the ",
    " hello",
    "\ufffd",
    "\u0301",
]


def llama() -> HFTokenizer:
    """As Llama 2's: pieces with ▁, bytes for what is in no piece, a space before the text that is dropped."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)}
    pieces = [
        "▁",
        *"abcdefghijklmnopqrstuvwxyz,.'!",
        "▁t",
        "▁th",
        "▁the",
        "▁h",
        "he",
        "ll",
        "llo",
        "hello",
        "▁hello",
    ]
    vocabulary |= {piece: 259 + i for i, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo")]
    backend = Tokenizer(
        models.BPE(
            vocabulary, [*merges, ("▁", "hello")], fuse_unk=True, byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return HFTokenizer(backend.to_str(), "llama")


def _trained(backend: Tokenizer, trainer) -> HFTokenizer:
    backend.train_from_iterator([TEXT], trainer)
    return HFTokenizer(backend.to_str(), "trained")


def byte_level() -> HFTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _trained(
        backend,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )


def word_piece() -> HFTokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made = _trained(
        backend, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return HFTokenizer(made.backend.to_str(), "word piece")


def unigram() -> HFTokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _trained(
        backend,
        trainers.UnigramTrainer(
            vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )


def word_level() -> HFTokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(backend, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))


def suffixes() -> HFTokenizer:
    """Words that end in </w>, as GPT-1's."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    return _trained(
        backend,
        trainers.BpeTrainer(
            vocab_size=120, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
        ),
    )


def world() -> WorldTokenizer:
    tokens = {b + 1: bytes([b]) for b in range(256)}
    words = [b"the", b" the", "中".encode(), "中文".encode(), b"\xe4\xb8", b"\xad\xe6"]
    return WorldTokenizer(tokens | {300 + i: word for i, word in enumerate(words)}, "world")


KINDS: dict[str, Callable[[], object]] = {
    "llama": llama,
    "byte level": byte_level,
    "word piece": word_piece,
    "unigram": unigram,
    "word level": word_level,
    "suffixes": suffixes,
    "world": world,
    "bytes": ByteTokenizer,
    "chars": lambda: CharTokenizer("".join(sorted(set("".join(ALPHABET))))),
}


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(ALPHABET, k=rng.randrange(1, 25)))


def random_ids(tokenizer, rng: random.Random) -> list[int]:
    return rng.choices(range(tokenizer.vocab_size), k=rng.randrange(1, 25))
