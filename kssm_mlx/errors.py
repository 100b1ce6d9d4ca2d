"""The named exceptions. A message says what was got, what was expected and what to do, in one line.

The command line turns a `KssmError` into that one line and the exit code the class carries: 2 for
unusable input, 1 for a check that failed. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch


class KssmWarning(UserWarning):
    """What goes on, and not as well as it might."""


class KssmError(Exception):
    """Base of everything raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class ConfigError(KssmError):
    """A recipe, a model configuration or an option cannot be used as written."""


class DataError(KssmError):
    """A corpus, a token file or a tokenizer cannot be used."""


class CheckpointError(KssmError):
    """A run folder or a checkpoint cannot be read or written."""


class WeightMismatch(KssmError):
    """Weights on disk are not the weights this model needs; loading fails closed."""

    exit_code = 1


class CheckFailed(KssmError):
    """A named check of the apparatus failed, so the run or claim does not go on."""

    exit_code = 1


class Interrupted(KssmError):
    """A signal ended the run at a step boundary, after a checkpoint was written."""

    exit_code = 130


def quote(value: object, longest: int = 120) -> str:
    """The value as Python writes it, for a message; a long one is cut."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def one_line(text: str, longest: int = 2000) -> str:
    """A message with names from a file in it: line breaks in them become spaces, and a long one is cut."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The closest of `known` as a hint, such as "; did you mean 'kappa'?", or the empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def is_among(name: str, known: Iterable[str]) -> bool:
    """Whether a name is one of `known`, which may be patterns such as "skill_*"."""
    known = tuple(known)
    # A slip in a name is not what a pattern such as "nats_*" is for.
    slip = name not in known and difflib.get_close_matches(name, known, n=1, cutoff=0.9)
    return not slip and any(fnmatch(name, pattern) for pattern in known)
