"""The learned state that texts begin with, as a small file, bound to the model it was learned in."""

from __future__ import annotations

import io
from pathlib import Path

import mlx.core as mx

from kssm_mlx import files
from kssm_mlx.errors import CheckpointError
from kssm_mlx.generation.state import digest_of_file, read_file, read_format
from kssm_mlx.models.base import flatten
from kssm_mlx.models.state_tuning import StateTuned

FORMAT = "kssm-initial-state-1"
KEYS = ("weights", "digest")


def save_initial_state(path: str | Path, model: StateTuned, base_digest: str) -> None:
    """Write what `model` learned as safetensors, marked with the root digest of its base model.

    Raises: CheckpointError if the file cannot be written; what was there before is then untouched.
    """
    tensors = flatten(model.trainable_parameters())
    metadata = {"format": FORMAT, "weights": base_digest}
    metadata["digest"] = digest_of_file(tensors, metadata)
    buffer = io.BytesIO()
    mx.save_safetensors(buffer, tensors, metadata)
    try:
        files.replace(path, buffer.getvalue())
    except OSError as e:
        raise CheckpointError(f"cannot write the state to {path}: {e.strerror}") from None


def is_initial_state(path: str | Path) -> bool:
    """Whether a file says that it is one; False for what is no file or cannot be read."""
    return read_format(Path(path)) == FORMAT


def load_initial_state(path: str | Path, weights_digest: str) -> dict[str, mx.array]:
    """The arrays of a file that was learned in exactly these weights.

    Raises: CheckpointError for no such file, one that was changed, or one of other weights.
    """
    tensors, metadata = read_file(Path(path), FORMAT, KEYS)
    if metadata["weights"] != weights_digest:
        raise CheckpointError(
            f"{path} is for weights {metadata['weights'][:12]}, this model has {weights_digest[:12]}; "
            "give it the model that it was trained on"
        )
    return tensors
