"""Where a generation stands: an explicit value that can be kept, cut into rows, saved and continued from.

The last token of a text has not been read by the model yet: it is `pending`. So a state is the same thing
after a prompt as in the middle of an answer, and going on from a file is the same arithmetic as going on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from kssm_mlx import files
from kssm_mlx.data.tokenizers.streaming import Tail
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.generation.sampling import NOTHING
from kssm_mlx.models.base import Cache, LanguageModel, flatten, training_mode
from kssm_mlx.parsing import parse_json
from kssm_mlx.weights.io.safetensors_header import read_safetensors

FORMAT = "kssm-state-2"
_OWN = {"pending": ("int32", 1), "keys": ("uint32", 2), "history": ("int32", 2)}  # dtype, dimensions


class Words(NamedTuple):
    """How a user of this command writes a state file, and how one begins without it: for errors."""

    writer: str = "--state-out"
    afresh: str = "without --state-in"


WORDS = Words()


@dataclass(frozen=True)
class GenerationState:
    """B conversations at the same kind of point.

    Shapes: cache, one entry per block with arrays [B, ...]; pending [B] int32, the token read next; keys
    [B, 2] uint32 of the random numbers; history [B, W] int32, the latest tokens, for the repetition penalty.
    tails: per conversation what the decoder of its text needs to go on; () where no text was decoded yet.
    """

    cache: Cache
    pending: mx.array
    keys: mx.array
    history: mx.array
    tokenizer_digest: str
    tails: tuple[Tail, ...] = ()

    def __len__(self) -> int:
        return self.pending.shape[0]

    def row(self, i: int) -> GenerationState:
        """Conversation i alone, as a state with B = 1."""
        cache = tree_map(lambda a: a[i : i + 1], self.cache)
        pending, keys, history = (a[i : i + 1] for a in (self.pending, self.keys, self.history))
        return GenerationState(cache, pending, keys, history, self.tokenizer_digest, self.tails[i : i + 1])


def stack(states: list[GenerationState]) -> GenerationState:
    """Several states of one model as the rows of one."""
    first, *rest = states

    def join(*arrays: mx.array) -> mx.array:
        return mx.concatenate(list(arrays))

    cache = tree_map(join, first.cache, *(s.cache for s in rest))
    names = ("pending", "keys", "history")
    pending, keys, history = (join(*(getattr(s, name) for s in states)) for name in names)
    tails = tuple(tail for s in states for tail in s.tails or (Tail(),) * len(s))
    return GenerationState(cache, pending, keys, history, first.tokenizer_digest, tails)


def save_state(path: str | Path, state: GenerationState, weights_digest: str, *, note: str = "") -> None:
    """Write the state as safetensors, marked with the weights and the tokenizer it belongs to, and a digest.

    note: a text that goes with it, for `read_note`.
    Raises: CheckpointError if the file cannot be written; what was there before is then untouched.
    """
    tensors = {f"cache.{name}": array for name, array in flatten(state.cache).items()}
    tensors |= {"pending": state.pending, "keys": state.keys, "history": state.history}
    metadata = {
        "format": FORMAT,
        "weights": weights_digest,
        "tokenizer": state.tokenizer_digest,
        "tails": json.dumps(state.tails),
    }
    metadata |= {"note": note} if note else {}
    metadata["digest"] = digest_of_file(tensors, metadata)
    # In memory first: a full disk must not leave half a file in the place of a whole one.
    buffer = io.BytesIO()
    mx.save_safetensors(buffer, tensors, metadata)
    try:
        files.replace(path, buffer.getvalue())
    except OSError as e:
        raise CheckpointError(f"cannot write the state to {path}: {e.strerror}") from None


def read_note(path: str | Path) -> str:
    """The note of a state file, "" where it has none. Raises: CheckpointError as `load_state`."""
    return _read_file(Path(path))[1].get("note", "")


def refuse_other_file(path: str | Path) -> None:
    """Before a text is written: is there a file in the way that is no state? Raises: CheckpointError."""
    if Path(path).exists():
        try:
            _read_file(Path(path))
        except CheckpointError:
            raise CheckpointError(f"{path} is there and is no state file; choose another name") from None


def load_state(path: str | Path, weights_digest: str, words: Words = WORDS) -> GenerationState:
    """Read a state that was made with exactly these weights, as it was written.

    words: of the command that asks, for what an error says to do.

    Raises: CheckpointError if there is no such file, or it is not a state, was changed, or is of
    other weights. `require_fit` compares a state with a model.
    """
    tensors, metadata = _read_file(Path(path), words)
    if metadata["weights"] != weights_digest:
        raise CheckpointError(
            f"{path} is a state of weights {metadata['weights'][:12]}, this model has {weights_digest[:12]}; "
            f"continue it with the checkpoint that wrote it, or start a new one {words.afresh}"
        )
    try:
        # A model of no layers has no cache, and tree_unflatten no empty tree.
        names = {name.removeprefix("cache."): a for name, a in tensors.items() if name.startswith("cache.")}
        cache = tree_unflatten(names) if names else []
        tails = tuple(Tail(tuple(ids), shown) for ids, shown in parse_json(metadata["tails"]))
        pending, keys, history = (tensors[name] for name in _OWN)
        state = GenerationState(cache, pending, keys, history, metadata["tokenizer"], tails)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise _foreign_file(path, f"it is incomplete ({e})", words) from None
    if wrong := _find_inconsistency(state, set(tensors)):
        raise _foreign_file(path, wrong, words)
    return state


def require_fit(state: GenerationState, model: LanguageModel, vocab_size: int) -> None:
    """Compare a state with the model that is to go on from it: MLX checks no bounds when it reads and writes.

    vocab_size: of the tokenizer.
    Raises: CheckpointError for another structure, other shapes or dtypes than the model's own cache has, and
    for ids that are none.
    """
    if wrong := _wrong_ids(state, min(vocab_size, model.args.vocab_size)) or _wrong_cache(state, model):
        raise CheckpointError(f"the state does not fit this model: {wrong}; start without it")


def _wrong_ids(state: GenerationState, vocab_size: int) -> str:
    for name, least in (("pending", 0), ("history", NOTHING)):
        ids = np.array(getattr(state, name))
        if ids.size and not (ids.min() >= least and ids.max() < vocab_size):
            bad = ids[(ids < least) | (ids >= vocab_size)].ravel()[0]
            return f"{name} has id {bad}, the vocabulary ends at {vocab_size - 1}"
    for ids, shown in state.tails:
        if any(type(id) is not int or not 0 <= id < vocab_size for id in ids) or not isinstance(shown, int):
            return "its text has ids beyond the vocabulary"
    return ""


def _wrong_cache(state: GenerationState, model: LanguageModel) -> str:
    """Against the caches after one and two tokens: an axis on which they differ grows with the text."""
    # Asked of the model itself: a cache of a new family needs no description here.
    one, two = (_cache_after(model, len(state), T) for T in (1, 2))
    got = flatten(state.cache)
    if got.keys() != one.keys():
        other = sorted(got.keys() ^ one.keys())
        return f"its cache has other parts ({', '.join(other[:3])})"
    for name, array in got.items():
        arrays = (array, one[name], two[name])
        shape, first, second = (getattr(a, "shape", ()) for a in arrays)
        alike = all(isinstance(a, mx.array) for a in arrays) and len(shape) == len(first) == len(second)
        if not alike or array.dtype != one[name].dtype:
            return f"{name} of its cache is of another kind"
        if any(n != a and a == b for n, a, b in zip(shape, first, second, strict=True)):
            return f"{name} of its cache has shape {list(shape)}, not like {list(first)}"
    return ""


def _cache_after(model: LanguageModel, B: int, T: int) -> dict[str, Any]:
    with training_mode(model, False):
        cache = model.forward(mx.zeros((B, T), mx.int32), model.make_cache()).cache
    return flatten(cache)


def _find_inconsistency(state: GenerationState, names: set[str]) -> str:
    """Why the tensors of a file are no state of any model."""
    rows = {array.shape[:1] for array in flatten(state.cache).values()}
    for name, (dtype, dimensions) in _OWN.items():
        array = getattr(state, name)
        rows.add(array.shape[:1])
        if str(array.dtype) != f"mlx.core.{dtype}" or array.ndim != dimensions:
            return f"{name} is {array.dtype} with {array.ndim} dimensions"
    if other := sorted(n for n in names if n not in _OWN and not n.startswith("cache.")):
        return f"it has {other[0]!a}"
    if len(rows) != 1 or state.keys.shape[1] != 2 or len(state.tails) not in (0, len(state)):
        return "its parts are of different numbers of conversations"
    return ""


def digest_of_file(tensors: dict[str, mx.array], metadata: dict[str, str]) -> str:
    """Of everything in the file, so that one flipped bit is noticed."""
    said = json.dumps({k: v for k, v in metadata.items() if k != "digest"}, sort_keys=True)
    digests = {name: tensor_digest(array) for name, array in tensors.items()}
    return root_digest({**digests, "metadata": hashlib.sha256(said.encode()).hexdigest()})


def _foreign_file(path: str | Path, why: str, words: Words) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable state file: {why}; it was not written by {words.writer}"
    )


def read_format(path: Path) -> str | None:
    """What a file of tensors says that it is; None for what is no such file."""
    try:
        return str(_load(path)[1].get("format")) if path.is_file() else None
    except CheckpointError:
        return None


def read_file(
    path: Path, format: str, keys: Sequence[str], words: Words = WORDS
) -> tuple[dict[str, mx.array], dict[str, str]]:
    """All tensors and the metadata, which has these keys, of a file in this format.

    Raises: CheckpointError for no such file, another format, and a digest that is not that of its contents.
    """
    if not path.is_file():
        raise CheckpointError(f"no state file {path}; {words.writer} {path} writes one")
    tensors, metadata = _load(path, words)
    if metadata.get("format") != format:
        raise CheckpointError(
            f"{path} has format {json.dumps(metadata.get('format'))}, expected {format!r}; "
            f"it was not written by {words.writer} of this version"
        )
    absent = [key for key in keys if key not in metadata]
    if absent or metadata["digest"] != digest_of_file(tensors, metadata):
        raise CheckpointError(
            f"{path} was changed after it was written, or is damaged; restore it, or start {words.afresh}"
        )
    return tensors, metadata


def _read_file(path: Path, words: Words = WORDS) -> tuple[dict[str, mx.array], dict[str, str]]:
    return read_file(path, FORMAT, ("weights", "tokenizer", "tails", "digest"), words)


def _load(path: Path, words: Words = WORDS) -> tuple[dict[str, mx.array], dict[str, str]]:
    """All tensors, evaluated (mx.load is lazy and reads the file again later), and the metadata."""
    try:
        _, findings = read_safetensors(path)
        if findings:
            raise _foreign_file(path, findings[0].got, words)
        tensors, metadata = cast(
            tuple[dict, dict], mx.load(str(path), format="safetensors", return_metadata=True)
        )
        mx.eval(tensors)
    except (RuntimeError, ValueError, OSError, TypeError) as e:
        raise _foreign_file(path, (str(e).splitlines() or [type(e).__name__])[0], words) from None
    return tensors, metadata
