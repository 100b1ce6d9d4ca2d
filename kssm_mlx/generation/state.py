"""Where a generation stands: an explicit value that can be kept, cut into rows, saved and continued from.

The last token of a text has not been read by the model yet: it is `pending`. So a state is the same thing
after a prompt as in the middle of an answer, and going on from a file is the same arithmetic as going on.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError, WeightMismatch
from kssm_mlx.models.base import Cache

FORMAT = "kssm-state-1"


@dataclass(frozen=True)
class GenerationState:
    """B conversations at the same kind of point.

    Shapes: cache, one entry per block with arrays [B, ...]; pending [B] int32, the token read next; keys
    [B, 2] uint32 of the random numbers; history [B, W] int32, the latest tokens, for the repetition penalty.
    """

    cache: Cache
    pending: mx.array
    keys: mx.array
    history: mx.array
    tokenizer_digest: str

    def __len__(self) -> int:
        return self.pending.shape[0]

    def row(self, i: int) -> GenerationState:
        """Conversation i alone, as a state with B = 1."""
        cache = tree_map(lambda a: a[i : i + 1], self.cache)
        arrays = (a[i : i + 1] for a in (self.pending, self.keys, self.history))
        return GenerationState(cache, *arrays, self.tokenizer_digest)


def stack(states: list[GenerationState]) -> GenerationState:
    """Several states of one model as the rows of one."""
    first, *rest = states

    def join(*arrays: mx.array) -> mx.array:
        return mx.concatenate(arrays)

    cache = tree_map(join, first.cache, *(s.cache for s in rest))
    arrays = (join(*(getattr(s, name) for s in states)) for name in ("pending", "keys", "history"))
    return GenerationState(cache, *arrays, first.tokenizer_digest)


def save_state(path: str | Path, state: GenerationState, weights_digest: str) -> None:
    """Write the state as safetensors, marked with the weights and the tokenizer it belongs to.

    Raises: CheckpointError if the file cannot be written; what was there before is then untouched.
    """
    tensors = {f"cache.{name}": array for name, array in tree_flatten(state.cache)}
    tensors |= {"pending": state.pending, "keys": state.keys, "history": state.history}
    metadata = {"format": FORMAT, "weights": weights_digest, "tokenizer": state.tokenizer_digest}
    buffer = io.BytesIO()
    mx.save_safetensors(buffer, tensors, metadata)
    try:
        files.replace(path, buffer.getvalue())
    except OSError as e:
        raise CheckpointError(f"cannot write the state to {path}: {e.strerror}") from None


def refuse_other_file(path: str | Path) -> None:
    """Before a text is written: is there a file in the way that is no state? Raises: CheckpointError."""
    if Path(path).exists():
        try:
            _read(path)
        except CheckpointError:
            raise CheckpointError(f"{path} is there and is no state file; choose another name") from None


def load_state(path: str | Path, weights_digest: str) -> GenerationState:
    """Read a state that was made with exactly these weights.

    Raises: CheckpointError if there is no such file or it is not a state; WeightMismatch for other weights.
    """
    tensors, metadata = _read(path)
    if metadata["weights"] != weights_digest:
        raise WeightMismatch(
            f"{path} is a state of weights {metadata['weights'][:12]}, this model has {weights_digest[:12]}; "
            "continue it with the checkpoint that wrote it, or start a new one without --state-in"
        )
    cache = {name.removeprefix("cache."): a for name, a in tensors.items() if name.startswith("cache.")}
    arrays = (tensors[name] for name in ("pending", "keys", "history"))
    return GenerationState(tree_unflatten(cache), *arrays, metadata["tokenizer"])


def _read(path: str | Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """All tensors, evaluated (mx.load is lazy and reads the file again later), and the metadata."""
    if not Path(path).is_file():
        raise CheckpointError(f"no state file {path}; --state-out writes one")
    try:
        tensors, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
        mx.eval(tensors)
    except (RuntimeError, ValueError) as e:
        raise CheckpointError(f"{path} is not a readable state file: {str(e).splitlines()[0]}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {json.dumps(metadata.get('format'))}, expected {FORMAT!r}; "
            "it was not written by kssm generate --state-out"
        )
    return tensors, metadata
