"""Where text comes from: a named source becomes a list of documents with a licence and a digest.

pydoc            the language reference inside every CPython (`pydoc_data.topics`): real English, no download
themes           800 short samples on sixteen themes, our own; themes:seed=1,samples=900 for others
file:PATH        one document
dir:PATH         every .txt, .text, .md and .markdown file below PATH, in the order of their names
jsonl:PATH       the field `text` of every line
gutenberg:DIR    the books of a folder of Project Gutenberg texts, cleaned, each once
wikitext:PATH    the articles of a raw WikiText file; of a folder, with the official validation split;
                 wikitext-joined:PATH the same with its @-@, @,@ and @.@ undone
hf:NAME          the field `text` of the train split of a Hugging Face dataset; hf:NAME:CONFIG picks a config
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path

from kssm_mlx.data.corpora.corpus import Corpus, Texts, corpus_digest
from kssm_mlx.data.corpora.repeats import remove_repeats
from kssm_mlx.data.corpora.text_files import ENDINGS, read_text, text_files
from kssm_mlx.errors import ConfigError, DataError, nearest
from kssm_mlx.parsing import parse_json

SLIP = 0.75  # likeness of two words from which one is the other mistyped: "flie" and "file"
GIVEN = "as given by the user"  # the licence of a file


def open_corpus(source: str) -> Corpus:
    """Read the text a source string names.

    Raises: ConfigError for an unknown kind of source or a missing optional package, DataError for text
        that is missing, unreadable, empty or not UTF-8.
    """
    kind, target = parse_source(source)
    texts = Texts(*_READERS[kind](target))
    documents = [text for text in texts.documents if text.strip()]
    if not documents:
        raise DataError(f"{source} holds no text; expected at least one document that is not blank")
    name = source if kind in _BUILT_IN else Path(target).name
    digest = corpus_digest([*documents, *texts.validation])
    return Corpus(name, source, documents, texts.licence, digest, texts.validation, texts.whole)


def parse_source(source: str) -> tuple[str, str]:
    """`file:a.txt` -> ("file", "a.txt"); nothing is read. Raises: ConfigError for an unknown kind."""
    kind, _, target = source.partition(":")
    if kind not in _READERS or (kind == "pydoc" and target) or (kind not in _BUILT_IN and not target):
        raise ConfigError(
            f"data.source is {source!r}; expected pydoc, themes, file:PATH, dir:PATH, jsonl:PATH, "
            "gutenberg:FOLDER, wikitext:PATH, wikitext-joined:PATH or hf:NAME"
            f"{_guess_meant(source, kind, target)}"
        )
    return kind, target


def _guess_meant(source: str, kind: str, target: str) -> str:
    """What a source that is none may have been meant to be: a slip, or a path with another kind or none."""
    slip = [] if Path(source).expanduser().exists() else get_close_matches(kind, _READERS, n=1, cutoff=SLIP)
    if slip:
        return f"; did you mean '{slip[0]}{':' if target else ''}{target}'?"
    for path in (source, target):
        if path and (there := Path(path).expanduser()).exists():
            ending = "jsonl" if there.suffix == ".jsonl" else "file"
            return f"; did you mean '{'dir' if there.is_dir() else ending}:{path}'?"
    if meant := _MEANT.get(kind.lower()):
        return f"; did you mean '{meant}:{target}'?"
    return nearest(kind, _READERS)


def _pydoc(_: str) -> tuple[list[str], str]:
    return list(_topics()), "PSF-2.0"


@cache
def _topics() -> tuple[str, ...]:
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
    unique = remove_repeats([topics[name] for name in longest_first])
    kept = dict(zip(longest_first, unique, strict=True))
    return tuple(kept[name] for name in sorted(kept))


def _themes(target: str) -> Texts:
    from kssm_mlx.data.corpora.themes import parse_options, themed_samples

    return Texts([sample.text for sample in themed_samples(**parse_options(target))], "MIT")


def _gutenberg(target: str) -> Texts:
    from kssm_mlx.data.corpora.gutenberg import LICENCE, open_shelf

    books = open_shelf(Path(target).expanduser()).books
    return Texts([book.text for book in books], LICENCE, whole=True)


def _wikitext(target: str, joined: bool = False) -> Texts:
    from kssm_mlx.data.corpora.wikitext import LICENCE, read_splits

    train, validation = read_splits(Path(target).expanduser(), joined)
    texts, held_out = ([article.text for article in side] for side in (train, validation))
    return Texts(texts, LICENCE, tuple(held_out), whole=True)


def _file(target: str) -> tuple[list[str], str]:
    return [read_text(Path(target).expanduser())], GIVEN


def _dir(target: str) -> tuple[list[str], str]:
    return [read_text(path) for path in find_texts(Path(target).expanduser())], GIVEN


def find_texts(root: Path) -> list[Path]:
    """The text files below a folder in the order of their names. Raises: DataError where there are none."""
    paths = sorted(text_files(root), key=lambda path: path.relative_to(root).as_posix())
    if not paths:
        raise DataError(f"{root} has no {', '.join(ENDINGS)} file; expected at least one, in it or below it")
    return paths


def _jsonl(target: str) -> tuple[list[str], str]:
    path = Path(target).expanduser()
    lines = read_text(path).split("\n")
    return [read_record(path, i, line) for i, line in enumerate(lines, 1) if line.strip()], GIVEN


def _hf(target: str) -> tuple[list[str], str]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  (an extra)
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
    texts = [_usable_text(text, f"hf:{target} row {i}") for i, text in enumerate(rows["text"])]
    return texts, getattr(rows.info, "license", None) or "see the dataset's card"


_BUILT_IN = ("pydoc", "themes")
# What elsewhere are names of kinds.
_MEANT = {
    **dict.fromkeys(("folder", "directory", "path"), "dir"),
    **dict.fromkeys(("text", "txt", "md"), "file"),
    **dict.fromkeys(("json", "ndjson"), "jsonl"),
    **dict.fromkeys(("huggingface", "dataset", "datasets", "hub"), "hf"),
}
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


def read_record(path: Path, number: int, line: str) -> str:
    """The text of one JSON line, which must be usable as UTF-8 without NUL like any other text."""
    try:
        record = parse_json(line)
    except ValueError as e:
        raise DataError(f"{path} line {number} is not JSON: {e}") from None
    if not isinstance(record, dict) or "text" not in record:
        got = f"keys {', '.join(record) or 'none'}" if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{path} line {number} has no string field 'text': got {got}")
    return _usable_text(record["text"], f"{path} line {number}")


def _usable_text(text: object, where: str) -> str:
    """Raises: DataError naming the record whose text is no string, or that UTF-8 cannot write."""
    if not isinstance(text, str):
        raise DataError(f"{where} has no string field 'text': got {type(text).__name__}")
    if "\0" in text or not _is_encodable(text):
        raise DataError(f"{where} has a NUL or half a surrogate pair in 'text'; expected text")
    return text


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in set(text))
