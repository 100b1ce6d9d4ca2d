"""Do loaded weights compute and speak? The checks of layers L4 and L5, which need the whole model.

W1 to W19 read files (weights/audit/findings.py). W20 to W28 run the model: arithmetic.py and behaviour.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from kssm_mlx.checks.core.registry import Context, NotMeasurable
from kssm_mlx.data.batches import Batch, evaluation_windows
from kssm_mlx.data.tokens import TokenSplit, bytes_per_target
from kssm_mlx.errors import DataError
from kssm_mlx.models.base import training_mode
from kssm_mlx.training.evaluation import evaluate
from kssm_mlx.weights.audit.manifest_tables import Behaviour, Fingerprint, ModelFacts, Published

ENGLISH = "english"
CONTEXT, SHORTEST = 512, 64
TOKENS = 8192  # scored at most; the English text has 5,452 under the World tokenizer, 24,306 as bytes
ROWS, LOGITS_AT_ONCE = 4, 2**27  # windows in a batch, and their logits: half a gigabyte in float32


def read_english() -> str:
    """24 KB of plain English prose written for this package: what no model was trained on."""
    return (files("kssm_mlx.data") / "english.txt").read_text("utf-8")


@dataclass(frozen=True)
class Reading:
    """A text as tokens, in the form in which the checks of a run read their data."""

    text: str
    validation: TokenSplit
    tokenizer: Any

    @property
    def context(self) -> int:
        """Tokens per window: 512, or half of a shorter text, so that there are at least two windows."""
        return min(CONTEXT, (self.validation.ids.size - 1) // 2)

    def bytes_per_target(self, targets: int) -> float:
        """UTF-8 bytes of text per token, over the first `targets` scored tokens."""
        return bytes_per_target(self.validation, self.tokenizer, targets)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Subject(Context):
    """A pretrained model, its tokenizer (None if it came without), and what is known about it.

    text: what it is judged on, by default the English of the package. Of its manifest, None where that is
    silent: domain, what it was trained on; facts, its sizes; fingerprint; behaviour; published, what its
    authors say of it.
    """

    text: str | None = None
    domain: str | None = None
    facts: ModelFacts | None = None
    fingerprint: Fingerprint | None = None
    behaviour: Behaviour | None = None
    published: Published | None = None

    @cached_property
    def reading(self) -> Reading:
        """The text as the base model reads it.

        Raises: NotMeasurable without a tokenizer that can write the text and fits the embedding.
        """
        self.need("model", "tokenizer")
        text = read_english() if self.text is None else self.text
        try:
            ids = np.asarray(self.tokenizer.encode(text), np.int64)
        except DataError as e:
            raise NotMeasurable(f"{e}; or give --text FILE") from None
        if ids.max(initial=0) >= self.model.args.vocab_size:
            raise NotMeasurable("the tokenizer has ids beyond the embedding (W20)")
        if ids.size < SHORTEST:
            raise NotMeasurable(f"the text has {ids.size} tokens, at least {SHORTEST} are needed")
        return Reading(text, TokenSplit("text", ids, np.zeros(1, np.int64)), self.tokenizer)

    def windows(self, tokens: int = TOKENS) -> Iterator[Batch]:
        """The beginning of the text in disjoint windows, as many at once as the memory is good for."""
        rows = max(1, min(ROWS, LOGITS_AT_ONCE // (self.reading.context * self.model.args.vocab_size)))
        return evaluation_windows(self.reading.validation, tokens, self.reading.context, rows)

    @cached_property
    def evaluation(self) -> dict[str, float]:
        """The loss on the text, as `training.evaluation.evaluate` gives it."""
        windows = self.windows()
        with training_mode(self.model, False):
            return evaluate(self.model, windows, self.reading.bytes_per_target)
