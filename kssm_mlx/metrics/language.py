"""Cross entropies that carry their unit: nats/token, nats/char and bits/byte never meet by accident.

A value may also know its tokenizer and the text it was measured on, by digest: then nats of two tokenizers,
or of two texts, do not meet either.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import total_ordering
from typing import Literal

import numpy as np

from kssm_mlx.errors import ConfigError


@total_ordering
@dataclass(frozen=True)
class _Loss(ABC):
    """A number with a unit; order and difference exist within one unit, one tokenizer and one text only."""

    value: float
    tokenizer: str = field(default="", kw_only=True)
    text: str = field(default="", kw_only=True)

    @property
    @abstractmethod
    def unit(self) -> str:
        """What the value counts, such as "nats/token"."""

    def __lt__(self, other: _Loss) -> bool:
        self._same_unit(other)
        return self.value < other.value

    def __sub__(self, other: _Loss) -> float:
        """The gap to `other`, in the unit of both."""
        self._same_unit(other)
        return self.value - other.value

    def __str__(self) -> str:
        return f"{self.value:.4f} {self.unit}"

    def _same_unit(self, other: _Loss) -> None:
        if not isinstance(other, _Loss) or self.unit != other.unit:
            raise ConfigError(
                f"cannot compare {self} with {other}: the units differ; convert both with to_bits_per_byte"
            )
        if self.text != other.text:
            raise ConfigError(f"cannot compare {self} with {other}: of two texts; evaluate both on one")
        if self.tokenizer != other.tokenizer:
            raise ConfigError(
                f"cannot compare {self} with {other}: tokens of two tokenizers; "
                "convert both with to_bits_per_byte"
            )


@dataclass(frozen=True)
class BitsPerByte(_Loss):
    """Cross entropy per UTF-8 byte of the text: comparable between tokenizers."""

    @property
    def unit(self) -> str:
        return "bits/byte"


@dataclass(frozen=True)
class Nats(_Loss):
    """Mean cross entropy in nats per token or per character."""

    per: Literal["token", "char"] = "token"

    @property
    def unit(self) -> str:
        return f"nats/{self.per}"

    @property
    def perplexity(self) -> float:
        """exp of the cross entropy, kept finite, because JSON has no infinity."""
        return math.exp(min(self.value, 700.0))  # a float64 ends at e^709

    def to_bits_per_byte(self, bytes_per_unit: float) -> BitsPerByte:
        """bits/byte = nats / (ln 2 · bytes per token or character).

        Raises: ConfigError if bytes_per_unit is not positive.
        """
        if not bytes_per_unit > 0:
            raise ConfigError(f"bytes per {self.per} is {bytes_per_unit}; expected a positive number")
        return BitsPerByte(self.value / (math.log(2) * bytes_per_unit), text=self.text)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over windows with its standard error, and the same as perplexity."""

    loss: Nats
    loss_se: float
    windows: int

    @property
    def perplexity(self) -> float:
        return self.loss.perplexity

    @property
    def perplexity_se(self) -> float:
        """Standard error of the perplexity to first order: perplexity times that of the loss."""
        return self.perplexity * self.loss_se


def summarize_losses(window_losses: np.ndarray, per: Literal["token", "char"] = "token") -> Evaluation:
    """Summary of the mean losses of windows of equal length; with one window the standard error is NaN.

    Tokens in one window depend on each other, so the window is the independent unit.

    Shapes: window_losses [windows], nats.
    Raises: ConfigError if there is no window.
    """
    losses = np.asarray(window_losses, dtype=np.float64).reshape(-1)
    if not losses.size:
        raise ConfigError(
            "no window to evaluate; eval.tokens must cover at least one of train.context tokens"
        )
    # Of independent windows; the tokens of one would make the error far too small.
    error = float(losses.std(ddof=1) / math.sqrt(losses.size)) if losses.size > 1 else math.nan
    return Evaluation(Nats(float(losses.mean()), per), error, losses.size)
