"""What lies in the place of a weight file and is none: a pointer of Git LFS."""

from __future__ import annotations

from pathlib import Path

from kssm_mlx.weights.audit.findings import Finding

LFS = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file holds the name of its content instead of the content."""
    with open(path, "rb") as f:
        return f.read(len(LFS)) == LFS


def not_weights(path: Path) -> Finding | None:
    """W1 for a pointer of Git LFS; None for anything else."""
    if not is_lfs_pointer(path):
        return None
    return Finding(
        "W1",
        f"{path.name} is a Git LFS pointer, the name of the file in place of the file",
        "fetch the file itself: `git lfs pull` in the repository, or `kssm` with its name on the hub",
    )
