"""The tokenizers that models were published with, by name and from local files: gpt2, cl100k, neox.

A name says how many tokens there are, and a file with another number is another tokenizer: the ids of GPT-2
read with the table of cl100k look like text gone bad. A file is a Hugging Face tokenizer.json, or the
folder that holds it, or OpenAI's list of ranks (`cl100k_base.tiktoken`): per line a token in base64, a rank.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.huggingface import byte_symbols
from kssm_mlx.data.tokenizers.protocol import FILE, read_tokenizer_file
from kssm_mlx.errors import DataError

RANKS = ".tiktoken"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Published:
    """sizes: the numbers of tokens under which it is known. Of one that has a list of ranks: how many there
    are, the pattern that cuts text into words, and id -> token for what is no text.
    """

    sizes: tuple[int, ...]
    ranks: int = 0
    words: str = ""
    special: Mapping[int, str] = field(default_factory=dict)


PUBLISHED = {
    "gpt2": Published(
        (50257,),
        50256,
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        {50256: END},
    ),
    "cl100k": Published(
        (100277,),
        100256,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        {
            100257: END,
            100258: "<|fim_prefix|>",
            100259: "<|fim_middle|>",
            100260: "<|fim_suffix|>",
            100276: "<|endofprompt|>",
        },
    ),
    "neox": Published((50277, 50254)),  # with and without the runs of spaces that were added to it
}


def load_published(name: str, target: str) -> HFTokenizer:
    """The tokenizer `name` from the file `target`.

    Raises: DataError for a file that cannot be read or has another number of tokens.
    """
    known, spec, path = PUBLISHED[name], f"{name}:{target}", Path(target).expanduser()
    if path.suffix == RANKS:
        tokenizer = _from_ranks(read_ranks(path), known, spec)
    else:
        tokenizer = HFTokenizer(read_tokenizer_file(path / FILE if path.is_dir() else path), spec)
    if tokenizer.vocab_size not in known.sizes:
        others = [other for other, its in PUBLISHED.items() if tokenizer.vocab_size in its.sizes]
        raise DataError(
            f"tokenizer {spec} has {tokenizer.vocab_size} tokens, {name} has "
            f"{' or '.join(map(str, known.sizes))}{': this is ' + others[0] if others else ''}; "
            f"give the file of {name}, or write the name of this one"
        )
    return tokenizer


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a list of ranks, by rank.

    Raises: DataError for a line of another form, ranks with gaps and a list without all single bytes.
    """
    tokens = []
    for number, line in enumerate(read_tokenizer_file(path).splitlines(), 1):
        token, _, rank = line.partition(" ")
        try:
            tokens.append(base64.b64decode(token, validate=True))
        except ValueError:  # also what is not ASCII
            rank = ""
        if rank != str(number - 1):
            raise DataError(
                f"{path} line {number}: expected a token in base64 and rank {number - 1}, got {line[:60]!a}"
            )
    if absent := [b for b in range(256) if bytes([b]) not in tokens[:256]]:
        raise DataError(f"{path} is no list of ranks: byte {absent[0]} is not among its first 256 tokens")
    return tokens


def _from_ranks(tokens: Sequence[bytes], known: Published, spec: str) -> HFTokenizer:
    """The BPE whose merges the ranks imply, cut into words and with special tokens as `known` says."""
    if known.ranks != len(tokens):
        raise DataError(
            f"{spec} has {len(tokens)} ranks; expected "
            + (f"{known.ranks}" if known.ranks else "a tokenizer.json, since it has no list of ranks")
        )
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    symbols = byte_symbols()
    spelled = {token: "".join(symbols[b] for b in token) for token in tokens}
    vocabulary = {text: rank for rank, text in enumerate(spelled.values())}
    merges = [(spelled[a], spelled[b]) for a, b in _merges(spelled)]
    special = {token: id for id, token in known.special.items()}
    backend = Tokenizer(models.BPE(vocabulary | special, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(known.words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return HFTokenizer(backend.to_str(), spec)


def _merges(tokens: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by the rank of what it makes: the pairs that are merged."""
    for token in tokens:
        for i in range(1, len(token)):
            if token[:i] in tokens and token[i:] in tokens:
                yield token[:i], token[i:]
