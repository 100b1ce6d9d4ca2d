"""A checkpoint in every process of a run: read by rank 0, whose disk has it, and sent to the others."""

from __future__ import annotations

from pathlib import Path

from kssm_mlx.training.checkpoints.checkpoint import Loaded, Snapshot
from kssm_mlx.training.parallel.ranks import Ranks


def share_checkpoint(loaded: Loaded | None, ranks: Ranks) -> Loaded | None:
    """What rank 0 has loaded; the others give None, and get the same with nothing skipped."""
    if ranks.size == 1:
        return loaded
    about = loaded and [str(loaded.path), loaded.snapshot.step, loaded.snapshot.state]
    described, stems = ranks.gather([about, list(loaded.snapshot.tensors) if loaded else []])[0]
    if described is None:
        return None
    tensors = {stem: ranks.share(loaded.snapshot.tensors[stem] if loaded else None) for stem in stems}
    path, step, state = described
    return loaded or Loaded(Path(path), Snapshot(step, tensors, state), {})
