"""Memory and bandwidth of Macs that can be bought: published figures, nothing here was measured.

Source: Apple, "Mac Studio - Technical Specifications", of 2022 (M1), 2023 (M2) and 2025 (M4 Max, M3 Ultra).
"""

from __future__ import annotations

from typing import NamedTuple

from kssm_mlx.errors import ConfigError, nearest

SOURCE = "on paper: Apple's published figures, from memory and secondary pages; not measured"
_GB = 10**9

# Chip, bytes per second, sizes of unified memory in GB.
_PUBLISHED = (
    ("M1 Max", 400, (32, 64)),
    ("M1 Ultra", 800, (64, 128)),
    ("M2 Max", 400, (32, 64, 96)),
    ("M2 Ultra", 800, (64, 128, 192)),
    ("M4 Max", 410, (36,)),
    ("M4 Max", 546, (48, 64, 128)),
    ("M3 Ultra", 819, (96, 256, 512)),
)


class Machine(NamedTuple):
    """memory: bytes; bandwidth: bytes per second; both as published."""

    name: str
    memory: int
    bandwidth: int


MACHINES = {
    f"{chip} {memory}": Machine(f"{chip} {memory} GB", memory * 2**30, rate * _GB)
    for chip, rate, memories in _PUBLISHED
    for memory in memories
}


def find_machine(name: str) -> Machine:
    """The machine of a name such as "M2 Ultra 64". Raises: ConfigError with the nearest."""
    words = " ".join(name.split()).lower().removesuffix("gb").strip()
    found = next((m for key, m in MACHINES.items() if key.lower() == words), None)
    if found is None:
        raise ConfigError(
            f"no machine {name[:60]!r}{nearest(name[:60], MACHINES)}; known: {', '.join(MACHINES)}"
        )
    return found


def least_step_seconds(machine: Machine, weights: int, trained: int, optimizer: int) -> float:
    """The time in which the memory of a machine can give what a step reads and writes at the very least.

    Weights once in each pass; of a trained parameter its gradient written and read, the parameter read and
    written: 16 bytes in fp32; and what the optimizer keeps, in bytes, read and written. Activations and
    arithmetic come on top.
    """
    return (2 * weights + 16 * trained + 2 * optimizer) / machine.bandwidth


def most_tokens_per_second(machine: Machine, weights: int, state: int) -> float:
    """Tokens of one row, one by one: each reads every weight, and reads and writes the state."""
    return machine.bandwidth / (weights + 2 * state)
