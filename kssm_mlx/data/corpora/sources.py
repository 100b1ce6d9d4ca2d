"""Where text comes from: a named source becomes a list of documents with a licence and a digest.

pydoc            the language reference inside every CPython (`pydoc_data.topics`): real English, no download
themes           800 short samples on sixteen themes, our own; themes:seed=1,samples=900 for others
file:PATH        one document
dir:PATH         every .txt and .md file below PATH, in the order of their names
jsonl:PATH       the field `text` of every line
gutenberg:DIR    the books of a folder of Project Gutenberg texts, cleaned, each once
wikitext:PATH    the articles of a raw WikiText file; of a folder, with the official validation split;
                 wikitext-joined:PATH the same with its @-@, @,@ and @.@ undone
hf:NAME          the field `text` of the train split of a Hugging Face dataset; hf:NAME:CONFIG picks a config
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kssm_mlx.errors import ConfigError, DataError, nearest

REPEAT = 64  # bytes; the length of passage that check C15 counts as shared between training and validation
REPLACED = 1e-5  # most U+FFFD per character in a prepared corpus: more is text that was decoded wrongly


@dataclass(frozen=True)
class Corpus:
    """Text as a list of documents. `digest` is a sha256 over all of them, so it names the content.

    validation: the held-out documents of a corpus that comes split, which are not among `documents`.
    whole: the documents are works, so that the split "auto" cuts none in two however few they are.
    """

    name: str
    source: str
    documents: list[str]
    licence: str
    digest: str
    validation: tuple[str, ...] = ()
    whole: bool = False

    @property
    def scored(self) -> list[str]:
        """What a model is scored on that was trained elsewhere: all of it, or the corpus's own validation."""
        return list(self.validation) or self.documents


class Texts(NamedTuple):
    """What a reader makes of its target; the fields as in `Corpus`."""

    documents: list[str]
    licence: str
    validation: tuple[str, ...] = ()
    whole: bool = False


def open_corpus(source: str) -> Corpus:
    """Read the text a source string names.

    Raises: ConfigError for an unknown kind of source or a missing optional package, DataError for text
        that is missing, unreadable, empty or not UTF-8.
    """
    kind, _, target = source.partition(":")
    if kind not in _READERS or (kind == "pydoc" and target) or (kind not in _BUILT_IN and not target):
        raise ConfigError(
            f"data.source is {source!r}; expected pydoc, themes, file:PATH, dir:PATH, jsonl:PATH, "
            f"gutenberg:FOLDER, wikitext:PATH, wikitext-joined:PATH or hf:NAME{nearest(kind, _READERS)}"
        )
    texts = Texts(*_READERS[kind](target))
    documents = [text for text in texts.documents if text.strip()]
    if not documents:
        raise DataError(f"{source} holds no text; expected at least one document that is not blank")
    name = source if kind in _BUILT_IN else Path(target).name
    digest = corpus_digest([*documents, *texts.validation])
    return Corpus(name, source, documents, texts.licence, digest, texts.validation, texts.whole)


def corpus_digest(documents: Iterable[str]) -> str:
    """sha256 over the documents in order, each after its length, so that moving a boundary changes it."""
    h = hashlib.sha256()
    for text in documents:
        raw = text.encode()
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()


def without_repeats(documents: list[str], length: int = REPEAT) -> list[str]:
    """Documents without the paragraphs that share `length` bytes with an earlier document.

    No run of `length` bytes is then in two documents, so no split by document can leak one.
    """
    seen: set[bytes] = set()
    return [_new_paragraphs(text, seen, length) for text in documents]


def _new_paragraphs(text: str, seen: set[bytes], length: int) -> str:
    """The paragraphs of `text` with nothing in `seen`, to which their own passages are then added."""
    body, gap, own = b"", b"", set()
    for paragraph in text.encode().split(b"\n\n"):
        joined = body[-(length - 1) :] + gap + paragraph  # with the passages that cross the gap
        passages = {joined[i : i + length] for i in range(len(joined) - length + 1)}
        if passages.isdisjoint(seen):
            body += gap + paragraph
            gap = b"\n\n"
            own |= passages
    seen |= own
    return body.decode()


def _pydoc(_: str) -> tuple[list[str], str]:
    """One document per topic, topics in the order of their names.

    The topics quote each other at length (`compound` contains all of `try`, `with` and `for`): a fifth of the
    text is there twice. Left in, 20 to 65 % of a held-out document is also in the training text, so repeated
    paragraphs stay only in the longest topic that has them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python comes without pydoc_data; use data.source = 'file:PATH'") from None
    longest_first = sorted(topics, key=lambda name: (-len(topics[name]), name))
    unique = without_repeats([topics[name] for name in longest_first])
    kept = dict(zip(longest_first, unique, strict=True))
    return [kept[name] for name in sorted(kept)], "PSF-2.0"


def _themes(target: str) -> Texts:
    from kssm_mlx.data.corpora.themes import parse_options, themed_samples

    return Texts([sample.text for sample in themed_samples(**parse_options(target))], "MIT")


def _gutenberg(target: str) -> Texts:
    from kssm_mlx.data.corpora.gutenberg import LICENCE, shelf

    books = shelf(Path(target).expanduser()).books
    return Texts([book.text for book in books], LICENCE, whole=True)


def _wikitext(target: str, joined: bool = False) -> Texts:
    from kssm_mlx.data.corpora.wikitext import LICENCE, splits

    train, validation = splits(Path(target).expanduser(), joined)
    texts, held_out = ([article.text for article in side] for side in (train, validation))
    return Texts(texts, LICENCE, tuple(held_out), whole=True)


def _file(target: str) -> tuple[list[str], str]:
    return [read_text(Path(target).expanduser())], "as given by the user"


def _dir(target: str) -> tuple[list[str], str]:
    root = Path(target).expanduser()
    paths = sorted(text_files(root), key=lambda path: path.relative_to(root).as_posix())
    if not paths:
        raise DataError(f"{root} has no .txt or .md file; expected at least one, in it or below it")
    return [read_text(path) for path in paths], "as given by the user"


def _jsonl(target: str) -> tuple[list[str], str]:
    path = Path(target).expanduser()
    lines = read_text(path).split("\n")
    return [_record(path, i, line) for i, line in enumerate(lines, 1) if line.strip()], "as given by the user"


def _hf(target: str) -> tuple[list[str], str]:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"hf:{target} needs the package datasets, which is not installed: pip install 'kssm-mlx[data]'"
        ) from None
    name, _, config = target.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        reason = str(e).strip().split("\n")[0]
        raise DataError(f"cannot load the dataset {target!r}: {reason or type(e).__name__}") from None
    if "text" not in rows.column_names:
        raise DataError(
            f"hf:{target} has the columns {', '.join(rows.column_names)}; expected one called text"
        )
    return list(rows["text"]), rows.info.license or "see the dataset's card"


_BUILT_IN = ("pydoc", "themes")
_READERS = {
    "pydoc": _pydoc,
    "themes": _themes,
    "file": _file,
    "dir": _dir,
    "jsonl": _jsonl,
    "gutenberg": _gutenberg,
    "wikitext": _wikitext,
    "wikitext-joined": partial(_wikitext, joined=True),
    "hf": _hf,
}


def refuse_replaced(text: str, where: str | Path) -> None:
    """Raises: DataError for text in which more than `REPLACED` of the characters are U+FFFD."""
    count = text.count("\ufffd")
    if count > REPLACED * len(text):
        raise DataError(
            f"{where}: {count} of {len(text)} characters are U+FFFD, a share of more than {REPLACED:g}; it "
            "was once decoded with the wrong encoding or tokenizer, so take it from its source again"
        )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises: DataError, which names the byte, for a file that is missing, forbidden, a folder or not text.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise _unreadable(path, e) from None
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{path} is not text: byte {nul} is NUL; expected UTF-8 text")
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path} is not UTF-8: byte {e.start} is 0x{raw[e.start]:02x} ({e.reason}); "
            "convert it first, for example with iconv -f LATIN1 -t UTF-8"
        ) from None


def text_files(root: Path) -> Iterator[Path]:
    """Paths of the .txt and .md files below `root`, hidden folders left out."""

    def stop(e: OSError):
        raise _unreadable(Path(e.filename), e) from None

    for folder, subfolders, names in os.walk(root, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if name.endswith((".txt", ".md")))


def _record(path: Path, number: int, line: str) -> str:
    """The text of one JSON line, which must be usable as UTF-8 without NUL like any other text."""
    try:
        record = json.loads(line)
    except ValueError as e:
        raise DataError(f"{path} line {number} is not JSON: {e}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        got = f"keys {', '.join(record) or 'none'}" if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{path} line {number} has no string field 'text': got {got}")
    if "\0" in text or not _encodable(text):
        raise DataError(f"{path} line {number} has a NUL or half a surrogate pair in 'text'; expected text")
    return text


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in set(text))


def _unreadable(path: Path, e: OSError) -> DataError:
    if isinstance(e, FileNotFoundError):
        return DataError(f"{path} does not exist; data.source takes a path from where you start kssm")
    return DataError(f"cannot read {path}: {(e.strerror or type(e).__name__).lower()}")
