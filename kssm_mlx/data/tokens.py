"""Token files: a corpus as two raw little-endian streams of ids that are mapped into memory, never loaded.

    train.bin, validation.bin             uint16 (uint32 from 65,537 tokens on), nothing but ids
    train.docs.bin, validation.docs.bin   uint64, where each document starts
    tokenizer.json                        the tokenizer that made the ids
    index.json                            written last: sizes, digests and what everything was made from

More ids than 2^30 are in several files (`shards.py`). A document is its separator token, if the tokenizer has
one, and then its text. The documents of a task are its rows, all of one length, and `train.scored.bin`
(uint8) says which of their tokens are targets; where these are not the next tokens, `train.labels.bin` has
them, of the type of the ids. MLX does not check the ids it gathers with, so they are checked when written
(`preparation/`) and all of them again by `verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from kssm_mlx.data.index import INDEX, MIXED, SPLITS, read_index
from kssm_mlx.data.mixtures import Part
from kssm_mlx.data.shards import Ids, map_numbers, read_blocks, shard_paths, shards_digest
from kssm_mlx.data.tasks import Task, make_task
from kssm_mlx.data.tokenizers.factory import load_tokenizer
from kssm_mlx.data.tokenizers.protocol import FILE as TOKENIZER
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.errors import DataError

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
STARTS = np.dtype("<u8")
SCORED = np.dtype("u1")
TOGETHER = 1 << 10  # documents cut at once, whose places take four times the memory of their ids


@dataclass(frozen=True)
class TokenSplit:
    """One side of the data.

    Shapes: ids [N] unsigned integers, starts [documents] ascending positions in ids, the first is 0; of a
        task, scored [N], nonzero where a token is a target, and row, the tokens of each document; labels [N],
        the targets of a labelled task, of any other the ids themselves. Of a mixture, of the training side
        parts, its sources, and of the other owners [documents], which of them each is of.
    """

    name: str
    ids: Ids
    starts: np.ndarray
    scored: np.ndarray | None = None
    row: int | None = None
    labels: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    owners: np.ndarray | None = None

    @property
    def answers(self) -> np.ndarray:
        """What each place asks for. Shapes: [N]."""
        return cast(np.ndarray, self.ids) if self.labels is None else self.labels

    def cut_at_documents(self, context: int) -> TokenSplit:
        """Of text the first `context` targets of every document, as rows; where a document is shorter, what
        comes behind it is read and not scored. A text of one document and a task stay as they are.
        """
        begins = self.starts.astype(np.int64)
        ends = np.append(begins[1:], self.ids.size)
        begins, ends = (a[ends - begins > 1] for a in (begins, ends))  # one token is no target
        if self.row is not None or begins.size < 2:
            return self
        row = context + 1
        ids, scored = (np.empty((begins.size, row), dtype) for dtype in (self.ids.dtype, np.uint8))
        for at in range(0, begins.size, TOGETHER):
            some = slice(at, at + TOGETHER)
            places = begins[some, None] + np.arange(row)
            ids[some] = self.ids[np.minimum(places, self.ids.size - 1)]
            scored[some] = places < ends[some, None]
        return TokenSplit(self.name, ids.ravel(), np.arange(begins.size) * row, scored.ravel(), row)

    def first(self, targets: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The answers up to the last of the first `targets` scored ones, and which of them are; None for
        text, where all are but the first.
        """
        if self.scored is None:
            return self.ids[: targets + 1], None
        stop = int(np.searchsorted(np.cumsum(self.scored, dtype=np.int64), targets)) + 1
        return self.answers[:stop], self.scored[:stop].astype(bool)


@dataclass(frozen=True)
class TokenData:
    """An opened folder of token files."""

    folder: Path
    train: TokenSplit
    validation: TokenSplit
    tokenizer: Tokenizer
    index: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> TokenData:
        """Map the token files in `folder`.

        Raises: DataError for a missing or foreign index, a file of the wrong length, a file with a .npy
            header and a tokenizer that is not the one that made the ids. Contents are left to `verify`.
        """
        folder = Path(folder)
        index = read_index(folder)
        tokenizer = load_tokenizer(folder)
        if tokenizer.digest != index["tokenizer"]["digest"]:
            raise DataError(
                f"{folder / TOKENIZER} has digest {tokenizer.digest[:12]}, the ids were made with "
                f"{index['tokenizer']['digest'][:12]}; prepare the data again in an empty folder"
            )
        train, validation = (_map_split(folder, name, index) for name in SPLITS)
        return cls(folder, train, validation, tokenizer, index)

    @property
    def vocab_size(self) -> int:
        return self.index["vocab_size"]

    @property
    def task(self) -> Task | None:
        """The task whose rows these are; None for text."""
        section = self.index["task"]
        return section and make_task(section["name"], section["options"])

    def cut_at_documents(self, context: int) -> TokenData:
        """Both sides so cut, in memory."""
        both = (split.cut_at_documents(context) for split in (self.train, self.validation))
        return replace(self, **dict(zip(SPLITS, both, strict=True)))

    def bytes_per_target(self, targets: int) -> float:
        """UTF-8 bytes of text per token, over the first `targets` scored tokens of the validation side."""
        return bytes_per_target(self.validation, self.tokenizer, targets)

    def verify(self) -> dict[str, int]:
        """Hash every file, range-check every id and document start; gives tokens and largest id per split.

        Raises: DataError with the file, what was found and what was expected.
        """
        for name, entry in self.index["files"].items():
            got = shards_digest(shard_paths(self.folder, name, entry["shards"]))
            expected = entry["sha256"]
            if got != expected:
                raise DataError(
                    f"{self.folder / name} has sha256 {got[:12]}, its index says {expected[:12]}: the file "
                    "changed after it was written; prepare the data again in an empty folder"
                )
        found = {}
        for split in (self.train, self.validation):
            largest = check_ids(split.ids, self.vocab_size, self.folder / f"{split.name}.bin")
            if split.labels is not None:
                check_ids(split.labels, self.vocab_size, self.folder / f"{split.name}.labels.bin")
            _check_starts(split, self.folder / f"{split.name}.docs.bin")
            found |= {f"{split.name}_tokens": split.ids.size, f"{split.name}_max_id": largest}
        return found


def bytes_per_target(split: TokenSplit, tokenizer: Tokenizer, targets: int) -> float:
    """UTF-8 bytes of text per token, over the first `targets` scored tokens; a separator has no text.

    It is counted on what is scored and not on the whole side, whose beginning may be in another script. A
    character that is cut at either end counts as the three bytes of U+FFFD.
    """
    ids, scored = split.first(targets)
    if scored is not None:
        return text_bytes(tokenizer, ids[scored]) / max(1, int(scored.sum()))
    # The token before the first target is read with it: some decoders drop the space of a first word.
    return (text_bytes(tokenizer, ids) - text_bytes(tokenizer, ids[:1])) / max(1, ids.size - 1)


def text_bytes(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    """UTF-8 bytes of the text of ids; separators have none."""
    separators = np.flatnonzero(ids == tokenizer.separator_id) if tokenizer.separator_id is not None else []
    texts = np.split(np.asarray(ids), separators)
    words = [text[1:] if i else text for i, text in enumerate(texts)]  # each but the first begins with one
    return sum(len(tokenizer.decode(word.tolist()).encode()) for word in words if word.size)


def encode_documents(
    name: str, documents: Sequence[str], tokenizer: Tokenizer, *, special_tokens: bool = False
) -> TokenSplit:
    """Documents as one side of data, in memory: each is its separator, if there is one, and its text.

    special_tokens: whether a special token that stands in a text is that token, or its characters.
    """
    encode = tokenizer.encode_special if special_tokens else tokenizer.encode
    opening = [] if tokenizer.separator_id is None else [tokenizer.separator_id]
    rows = [np.concatenate([opening, encode(text)]).astype(np.int64) for text in documents]
    rows = [row for row in rows if row.size]
    ids = np.concatenate(rows) if rows else np.empty(0, np.int64)
    return TokenSplit(name, ids, np.cumsum([0, *(row.size for row in rows[:-1])]))


def _map_split(folder: Path, name: str, index: dict[str, Any]) -> TokenSplit:
    side, task, dtype = index["splits"][name], index["task"], DTYPES[index["dtype"]]
    ids = map_numbers(folder, f"{name}.bin", index["files"][f"{name}.bin"]["shards"], dtype, side["tokens"])
    starts = _map_file(folder / f"{name}.docs.bin", STARTS, side["documents"])
    if index["mixture"] and name == "train":
        return TokenSplit(name, ids, starts, parts=_read_parts(index["mixture"], ids.size))
    if index["mixture"]:
        owners = _map_file(folder / MIXED, SCORED, side["documents"])
        return TokenSplit(name, ids, starts, owners=owners)
    if task is None:
        return TokenSplit(name, ids, starts)
    scored = _map_file(folder / f"{name}.scored.bin", SCORED, side["tokens"])
    if not task["labelled"]:
        return TokenSplit(name, ids, starts, scored, task["row"])
    labels = _map_file(folder / f"{name}.labels.bin", dtype, side["tokens"])
    return TokenSplit(name, ids, starts, scored, task["row"], labels)


def _map_file(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    return cast(np.ndarray, map_numbers(path.parent, path.name, 1, dtype, length))


def _read_parts(mixture: list[dict[str, Any]], size: int) -> tuple[Part, ...]:
    """Raises: DataError unless the sources have all the tokens there are."""
    ends = np.cumsum([part["train"] for part in mixture]).tolist()
    if ends[-1] != size:
        raise DataError(
            f"the sources of {INDEX} have {ends[-1]} tokens, train.bin has {size}; prepare the data again in "
            "an empty folder"
        )
    return tuple(
        Part(part["name"], part["weight"], part["epochs"], end - part["train"], end)
        for part, end in zip(mixture, ends, strict=True)
    )


def check_ids(ids: Ids, vocab_size: int, path: Path) -> int:
    """The largest id. Raises: DataError for ids outside the vocabulary, or none."""
    if not ids.size:
        raise DataError(f"{path} would hold no token; give more text")
    low, high = zip(*((int(block.min()), int(block.max())) for block in read_blocks(ids)), strict=True)
    if min(low) < 0 or max(high) >= vocab_size:
        raise DataError(
            f"{path} has ids from {min(low)} to {max(high)}; expected 0 to {vocab_size - 1}, the vocabulary"
        )
    return max(high)


def _check_starts(split: TokenSplit, path: Path) -> None:
    starts = split.starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= split.ids.size:
        raise DataError(
            f"{path} must start at 0, rise and stay below {split.ids.size}; prepare the data again"
        )
