"""Generation: a text, or several as one batch, continued token by token from an explicit state."""

from kssm_mlx.generation.sampling import Sampling
from kssm_mlx.generation.state import GenerationState, load_state, refuse_other_file, save_state, stack
from kssm_mlx.generation.text import Completion, Piece, follow, generate, stream

__all__ = [
    "Completion",
    "GenerationState",
    "Piece",
    "Sampling",
    "follow",
    "generate",
    "load_state",
    "refuse_other_file",
    "save_state",
    "stack",
    "stream",
]
