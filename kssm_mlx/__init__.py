"""kssm-mlx: language models with oscillators in them, on MLX.

Five public names, imported when first used so that `import kssm_mlx` stays instant:
`load`, `build`, `train`, `generate`, `verify`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from kssm_mlx import _blas, _caches, _memory

__version__ = "0.1.0"

_PUBLIC = {
    "load": "kssm_mlx.runner.load",
    "build": "kssm_mlx.models",
    "train": "kssm_mlx.runner.train",
    "generate": "kssm_mlx.generation",
    "verify": "kssm_mlx.runner.verify",
}
build: Callable[..., Any]
generate: Callable[..., Any]
load: Callable[..., Any]
train: Callable[..., Any]
verify: Callable[..., Any]
__all__ = ["build", "generate", "load", "train", "verify"]

# mlx binds its matrix products to whatever BLAS is in the process first, and looks for its compiled kernels
# where TMPDIR says, so this precedes every import of it.
_caches.use_private_cache_for_mlx()
_blas.prefer_fast_blas()
_memory.keep_freed_memory()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
