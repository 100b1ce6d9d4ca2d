"""Token files: a corpus as two raw little-endian streams of ids that are mapped into memory, never loaded.

    train.bin, validation.bin             uint16 (uint32 from 65,537 tokens on), nothing but ids
    train.docs.bin, validation.docs.bin   uint64, where each document starts
    tokenizer.json                        the tokenizer that made the ids
    index.json                            written last: sizes, digests and what everything was made from

A document is its separator token, if the tokenizer has one, and then its text. The documents of a task are
its rows, all of one length, and `train.scored.bin` (uint8) says which of their tokens are targets; where
these are not the next tokens, `train.labels.bin` has them, of the type of the ids. MLX does not check the ids
it gathers with, so they are checked when written and all of them again by `verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from kssm_mlx import files
from kssm_mlx.data.corpora.corpus import Corpus, corpus_digest
from kssm_mlx.data.corpora.repeats import remove_repeated_paragraphs
from kssm_mlx.data.corpora.sources import GIVEN, open_corpus
from kssm_mlx.data.index import FILES, FORMAT, INDEX, LABELS, MIXED, SCORED, SPLITS, read_index
from kssm_mlx.data.mixtures import Part, apportion, cut_pieces, name_sources, take_turns
from kssm_mlx.data.splits import split_corpus
from kssm_mlx.data.streams.documents import Stream, open_stream
from kssm_mlx.data.streams.survey import Texts, plan
from kssm_mlx.data.streams.writer import WORK, survey_once, write_stream
from kssm_mlx.data.tasks import PREFIX, Task, make_task
from kssm_mlx.data.tasks.files import task_origin, task_rows
from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.plain import IdTokenizer
from kssm_mlx.data.tokenizers.protocol import FILE as TOKENIZER
from kssm_mlx.data.tokenizers.protocol import Tokenizer
from kssm_mlx.digest import file_digest
from kssm_mlx.errors import DataError
from kssm_mlx.terminal import Bytes

_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_STARTS = np.dtype("<u8")
_SCORED = np.dtype("u1")
_NPY_MAGIC = b"\x93NUMPY"


class DataRecipe(Protocol):
    """The fields of a recipe's [data] section; those that came later may be missing."""

    @property
    def source(self) -> str: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def validation(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def task(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TokenSplit:
    """One side of the data.

    Shapes: ids [N] unsigned integers, starts [documents] ascending positions in ids, the first is 0; of a
        task, scored [N], nonzero where a token is a target, and row, the tokens of each document; labels [N],
        the targets of a labelled task, of any other the ids themselves. Of a mixture, of the training side
        parts, its sources, and of the other owners [documents], which of them each is of.
    """

    name: str
    ids: np.ndarray
    starts: np.ndarray
    scored: np.ndarray | None = None
    row: int | None = None
    labels: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    owners: np.ndarray | None = None

    @property
    def answers(self) -> np.ndarray:
        """What each place asks for. Shapes: [N]."""
        return self.ids if self.labels is None else self.labels

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
        places = begins[:, None] + np.arange(row)
        ids = self.ids[np.minimum(places, self.ids.size - 1)]
        scored = (places < ends[:, None]).astype(np.uint8)
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
            got, expected = file_digest(self.folder / name), entry["sha256"]
            if got != expected:
                raise DataError(
                    f"{self.folder / name} has sha256 {got[:12]}, its index says {expected[:12]}: the file "
                    "changed after it was written; prepare the data again in an empty folder"
                )
        for split in (self.train, self.validation):
            _check_ids(split.ids, self.vocab_size, self.folder / f"{split.name}.bin")
            if split.labels is not None:
                _check_ids(split.labels, self.vocab_size, self.folder / f"{split.name}.labels.bin")
            _check_starts(split, self.folder / f"{split.name}.docs.bin")
        return {
            f"{split.name}_{key}": value
            for split in (self.train, self.validation)
            for key, value in (("tokens", split.ids.size), ("max_id", int(split.ids.max())))
        }


class _Side(NamedTuple):
    """One side as it is written. lost: measures what share of its characters decoding does not give back."""

    split: TokenSplit
    utf8_bytes: int
    lost: Callable[[], float]


class _Source(NamedTuple):
    """origin: the sections of the index that say what the ids depend on: equal sections, equal ids.
    sides: makes both sides. write: of a stream, in place of it: (folder, type of the ids) -> what is written.
    """

    origin: dict[str, Any]
    tokenizer: Tokenizer
    sides: Callable[[], list[_Side]] = list
    write: Callable[[Path, np.dtype], dict[str, dict[str, float]]] | None = None


def prepare(recipe: DataRecipe, folder: str | Path) -> TokenData:
    """The token files of a recipe's [data] section in `folder`, written unless they are already there.

    Files are reused when corpus, tokenizer and split are the same by digest. The index goes away first and
    comes back last, so a folder that was left half-written has none and is prepared again.

    Raises: ConfigError, DataError (also for a folder that cannot be written or a full disk).
    """
    folder = Path(folder)
    if getattr(recipe, "sources", ()):
        source = _of_mixture(recipe)
    elif recipe.source.startswith(PREFIX):
        source = _of_task(recipe)
    elif stream := None if getattr(recipe, "deduplicate", False) else open_stream(recipe.source):
        return _prepare_stream(recipe, stream, folder)
    else:
        source = _of_text(recipe)
    return _prepare(source, folder)


def _prepare(source: _Source, folder: Path) -> TokenData:
    """Opened, or written where they are not there. Raises: DataError for a folder that takes no files."""
    if _is_prepared(folder, source.origin):
        return TokenData.open(folder)
    with _written_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        _write_sides(folder, source)
    return TokenData.open(folder)


def _prepare_stream(recipe: DataRecipe, stream: Stream, folder: Path) -> TokenData:
    """The same of text that is read in pieces, with a bar on a terminal."""
    with Bytes() as meter:
        meter.start(2 * stream.nbytes)
        with _written_in(folder):
            source = _of_stream(recipe, stream, folder, meter.advance)
        data = _prepare(source, folder)
    shutil.rmtree(folder / WORK, ignore_errors=True)  # of a survey that said all is there
    return data


@contextlib.contextmanager
def _written_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise DataError(f"cannot write token files in {folder}: {(e.strerror or str(e)).lower()}") from None


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


def _of_text(recipe: DataRecipe) -> _Source:
    corpus = _open_text(recipe.source, getattr(recipe, "deduplicate", False))
    both, method, share = split_corpus(corpus, recipe.split, recipe.validation, recipe.seed)
    everything = [*corpus.documents, *corpus.validation]
    special = bool(getattr(recipe, "special_tokens", False))
    tokenizer = make_tokenizer(recipe.tokenizer, everything, both[0], special_tokens=special)
    origin = {
        "corpus": {
            "name": corpus.name,
            "source": corpus.source,
            "licence": corpus.licence,
            "digest": corpus.digest,
            "documents": len(everything),
        },
        "tokenizer": _describe_tokenizer(tokenizer),
        "split": {"method": method, "validation": share, "seed": recipe.seed},
        "special_tokens": special,
    }

    def sides() -> list[_Side]:
        return [_text_side(name, texts, tokenizer, special) for name, texts in zip(SPLITS, both, strict=True)]

    return _Source(origin, tokenizer, sides)


def _of_stream(recipe: DataRecipe, stream: Stream, folder: Path, advance: Callable[[int], None]) -> _Source:
    """As `_of_text`, with equal ids and digests, of a text that is never in memory whole."""
    found = survey_once(stream, folder, advance)
    split = plan(found, recipe.split, recipe.validation, recipe.seed)
    special = bool(getattr(recipe, "special_tokens", False))
    everything, trained = Texts(stream, found), Texts(stream, found, split)
    tokenizer = make_tokenizer(recipe.tokenizer, everything, trained, special_tokens=special)
    origin = {
        "corpus": {
            "name": stream.name,
            "source": stream.source,
            "licence": GIVEN,
            "digest": found.digest,
            "documents": len(everything),
        },
        "tokenizer": _describe_tokenizer(tokenizer),
        "split": {"method": split.method, "validation": recipe.validation, "seed": recipe.seed},
        "special_tokens": special,
    }
    options = {"special_tokens": special, "lost": _characters_lost, "advance": advance, "identity": origin}
    write = partial(write_stream, stream, found, split, tokenizer, **options)
    return _Source(origin, tokenizer, write=write)


def _of_mixture(recipe: Any) -> _Source:
    """All sources with one tokenizer, which is learned from what all of them train on, if it is learned."""
    corpora = [_open_text(each.source, recipe.deduplicate) for each in recipe.sources]
    weights = [each.weight for each in recipe.sources]
    apportion(tuple(weights))  # only to refuse a weight without a row before anything is encoded
    halves = [split_corpus(c, recipe.split, recipe.validation, recipe.seed) for c in corpora]
    tokenizer = _make_joint_tokenizer(recipe, corpora, [both[0] for both, *_ in halves])
    names = name_sources([corpus.name for corpus in corpora])
    train, validation = (
        [
            _text_side(name, both[side], tokenizer, recipe.special_tokens)
            for name, (both, *_) in zip(names, halves, strict=True)
        ]
        for side in (0, 1)
    )
    for name, own in zip(names, train, strict=True):
        _check_ids(own.split.ids, tokenizer.vocab_size, Path(name))
    methods = dict.fromkeys(method for _, method, _ in halves)
    origin = {
        "corpus": _describe_corpora(corpora, names, recipe.origin),
        "tokenizer": _describe_tokenizer(tokenizer),
        "split": {"method": ", ".join(methods), "validation": recipe.validation, "seed": recipe.seed},
        "special_tokens": recipe.special_tokens,
        "mixture": _describe_parts(recipe.sources, names, train),
    }
    return _Source(origin, tokenizer, lambda: [_lay_end_to_end(train), _lay_in_turns(validation, weights)])


def _make_joint_tokenizer(
    recipe: Any, corpora: Sequence[Corpus], train: Sequence[Sequence[str]]
) -> Tokenizer:
    everything = [text for corpus in corpora for text in (*corpus.documents, *corpus.validation)]
    read = [text for texts in train for text in texts]
    return make_tokenizer(recipe.tokenizer, everything, read, special_tokens=recipe.special_tokens)


def _describe_corpora(corpora: Sequence[Corpus], names: Sequence[str], origin: str) -> dict[str, Any]:
    """Several corpora as the one that their mixture is."""
    digests = json.dumps([corpus.digest for corpus in corpora])
    return {
        "name": " + ".join(names),
        "source": origin,
        "licence": "; ".join(dict.fromkeys(corpus.licence for corpus in corpora)),
        "digest": hashlib.sha256(digests.encode()).hexdigest(),
        "documents": sum(len(corpus.documents) + len(corpus.validation) for corpus in corpora),
    }


def _describe_parts(
    sources: Sequence[Any], names: Sequence[str], train: Sequence[_Side]
) -> list[dict[str, Any]]:
    """What `_read_parts` makes the parts of the training ids from."""
    return [
        {
            "name": name,
            "source": each.source,
            "weight": each.weight,
            "epochs": each.epochs,
            "train": own.split.ids.size,
        }
        for name, each, own in zip(names, sources, train, strict=True)
    ]


def _lay_end_to_end(sources: Sequence[_Side]) -> _Side:
    """The training side: one source behind the other, because every row is drawn from one of them."""
    split = TokenSplit("train", *_join([(own.split.ids, own.split.starts) for own in sources]))
    return _merge(split, sources)


def _lay_in_turns(sources: Sequence[_Side], weights: Sequence[float]) -> _Side:
    """The validation side: pieces by weight, because evaluations score its beginning."""
    pieces = [cut_pieces(own.split.ids, own.split.starts) for own in sources]
    turns = take_turns([[piece.size for piece in own] for own in pieces], weights)
    laid = [(pieces[source][i], np.zeros(1, np.int64)) for source, i in turns]
    owners = np.array([source for source, _ in turns], np.uint8)
    return _merge(TokenSplit("validation", *_join(laid), owners=owners), sources)


def _merge(split: TokenSplit, sources: Sequence[_Side]) -> _Side:
    """A side with the text of all sources; it has lost what the worst of them has."""
    return _Side(split, sum(own.utf8_bytes for own in sources), lambda: max(own.lost() for own in sources))


def _join(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, starts) of parts laid one behind the other."""
    begins = np.cumsum([0, *(ids.size for ids, _ in parts[:-1])])
    starts = [own + begin for (_, own), begin in zip(parts, begins.tolist(), strict=True)]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate(starts)


def _open_text(source: str, deduplicate: bool) -> Corpus:
    corpus = open_corpus(source)
    return _deduplicate(corpus) if deduplicate else corpus


def _deduplicate(corpus: Corpus) -> Corpus:
    """The corpus without what it says twice; its own validation text counts as the later one."""
    texts = remove_repeated_paragraphs([*corpus.documents, *corpus.validation])
    documents, validation = texts[: len(corpus.documents)], texts[len(corpus.documents) :]
    kept, held_out = ([text for text in side if text.strip()] for side in (documents, validation))
    digest = corpus_digest([*kept, *held_out])
    return replace(corpus, documents=kept, validation=tuple(held_out), digest=digest)


def _text_side(name: str, texts: Sequence[str], tokenizer: Tokenizer, special_tokens: bool) -> _Side:
    split = encode_documents(name, texts, tokenizer, special_tokens=special_tokens)

    def lost() -> float:
        opening = tokenizer.separator_id is not None
        read = [text for text in texts if opening or text]  # an empty document has no ids if nothing opens it
        ends = [*split.starts[1:].tolist(), split.ids.size]
        ids = [split.ids[a + opening : b] for a, b in zip(split.starts.tolist(), ends, strict=True)]
        pairs = zip(read, ids, strict=False)
        gone = sum(_characters_lost(text, tokenizer.decode(own.tolist())) for text, own in pairs)
        return gone / max(1, sum(map(len, texts)))

    return _Side(split, sum(len(text.encode()) for text in texts), lost)


def _characters_lost(text: str, decoded: str) -> int:
    """How many characters of `text` are not in `decoded`, spaces at its ends aside: decoders drop some."""
    text, decoded = text.strip(), decoded.strip()
    return 0 if text == decoded else max(1, (Counter(text) - Counter(decoded)).total())


def _of_task(recipe: DataRecipe) -> _Source:
    name = recipe.source.removeprefix(PREFIX)
    task = make_task(name, recipe.task)
    tokenizer = cast(Tokenizer, IdTokenizer(task.vocab_size))

    def side(split: str, ids: np.ndarray, scored: np.ndarray) -> _Side:
        rows, row = ids.shape
        labels = task.answers(ids).ravel() if task.labelled else None
        made = TokenSplit(split, ids.ravel(), np.arange(rows) * row, scored.ravel(), row, labels)
        return _Side(made, len(tokenizer.decode(made.ids.tolist())), lambda: 0.0)

    return _Source(
        {**task_origin(name, task, recipe.seed), "tokenizer": _describe_tokenizer(tokenizer)},
        tokenizer,
        lambda: [side(split, *rows) for split, rows in task_rows(task, recipe.seed).items()],
    )


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "name": tokenizer.name,
        "digest": tokenizer.digest,
        "separator_id": tokenizer.separator_id,
    }


def _is_prepared(folder: Path, origin: dict[str, Any]) -> bool:
    """Whether `folder` has usable token files of this origin."""
    try:
        return TokenData.open(folder).index.items() >= origin.items()
    except DataError:
        return False


def _write_sides(folder: Path, source: _Source) -> None:
    """Make and write everything, the index last."""
    tokenizer = source.tokenizer
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    if source.write:
        sides = source.write(folder, _DTYPES[dtype])
    else:
        made = source.sides()
        sides = {side.split.name: _write_side(folder, side, tokenizer, _DTYPES[dtype]) for side in made}
    tokenizer.save(folder)
    task = source.origin.get("task")
    names = (*FILES, *(SCORED if task else ()), *(LABELS if task and task["labelled"] else ()))
    names = (*names, MIXED) if source.origin.get("mixture") else names
    index = {
        "format": FORMAT,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        **source.origin,
        "splits": sides,
        "files": {name: {"sha256": file_digest(folder / name)} for name in names},
    }
    files.replace(folder / INDEX, json.dumps(index, indent=1) + "\n")


def _write_side(folder: Path, side: _Side, tokenizer: Tokenizer, dtype: np.dtype) -> dict[str, float]:
    """Write the files of one side; returns its sizes, and what its tokenizer lost."""
    split = side.split
    _check_ids(split.ids, tokenizer.vocab_size, folder / f"{split.name}.bin")
    streams = {"bin": split.ids.astype(dtype), "docs.bin": split.starts.astype(_STARTS)}
    if split.scored is not None:
        streams["scored.bin"] = split.scored.astype(_SCORED)
    if split.labels is not None:
        _check_ids(split.labels, tokenizer.vocab_size, folder / f"{split.name}.labels.bin")
        streams["labels.bin"] = split.labels.astype(dtype)
    if split.owners is not None:
        streams["sources.bin"] = split.owners
    for kind, array in streams.items():
        files.replace(folder / f"{split.name}.{kind}", array.tobytes())
    return {
        "tokens": split.ids.size,
        "documents": split.starts.size,
        "utf8_bytes": side.utf8_bytes,
        "lost": side.lost(),
    }


def _map_split(folder: Path, name: str, index: dict[str, Any]) -> TokenSplit:
    side, task = index["splits"][name], index["task"]
    ids = _map_array(folder / f"{name}.bin", _DTYPES[index["dtype"]], side["tokens"])
    starts = _map_array(folder / f"{name}.docs.bin", _STARTS, side["documents"])
    if index["mixture"] and name == "train":
        return TokenSplit(name, ids, starts, parts=_read_parts(index["mixture"], ids.size))
    if index["mixture"]:
        owners = _map_array(folder / MIXED, _SCORED, side["documents"])
        return TokenSplit(name, ids, starts, owners=owners)
    if task is None:
        return TokenSplit(name, ids, starts)
    scored = _map_array(folder / f"{name}.scored.bin", _SCORED, side["tokens"])
    if not task["labelled"]:
        return TokenSplit(name, ids, starts, scored, task["row"])
    labels = _map_array(folder / f"{name}.labels.bin", _DTYPES[index["dtype"]], side["tokens"])
    return TokenSplit(name, ids, starts, scored, task["row"], labels)


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


def _map_array(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """Map `length` numbers of `dtype`, which must be exactly what the file holds."""
    try:
        with open(path, "rb") as f:
            magic = f.read(len(_NPY_MAGIC))
        size = path.stat().st_size
    except OSError as e:
        raise DataError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    if magic == _NPY_MAGIC:
        raise DataError(f"{path} is a .npy file; expected raw ids without its header, as kssm writes them")
    if size != length * dtype.itemsize:
        raise DataError(
            f"{path} has {size} bytes; expected {length * dtype.itemsize} for {length} ids of {dtype.name}; "
            "prepare the data again in an empty folder"
        )
    return np.memmap(path, dtype, mode="r", shape=(length,))


def _check_ids(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    if not ids.size:
        raise DataError(f"{path} would hold no token; give more text")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{path} has ids from {low} to {high}; expected 0 to {vocab_size - 1}, the vocabulary"
        )


def _check_starts(split: TokenSplit, path: Path) -> None:
    starts = split.starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= split.ids.size:
        raise DataError(
            f"{path} must start at 0, rise and stay below {split.ids.size}; prepare the data again"
        )
