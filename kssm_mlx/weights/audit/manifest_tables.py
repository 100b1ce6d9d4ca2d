"""The tables of a manifest: what a model is, what its authors say of it, what it was seen to do here."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from kssm_mlx.errors import nearest
from kssm_mlx.models import FAMILIES

SHA256 = "^[0-9a-f]{64}$"


def _require_known(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"known architectures are {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return name


class Table(BaseModel):
    """Unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelFacts(Table):
    """Architecture and sizes in the words of a configuration; vocab_size counts the embedding's rows."""

    model_type: Annotated[str, AfterValidator(_require_known)]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt


class TokenizerFacts(Table):
    """The tokenizer the model was trained with, how many ids it gives, and a repository that has its file."""

    name: str
    vocab_size: PositiveInt
    repo: str | None = None


class Published(Table):
    """Figures of the authors, with where they stand. Units: nats per token of the model's own tokenizer.

    checkpoint: which of several files of the authors the figures are of.
    """

    source: str = Field(min_length=1)
    checkpoint: str | None = None
    pile_perplexity: PositiveFloat | None = None
    pile_nats_per_token: PositiveFloat | None = None
    lambada_perplexity: PositiveFloat | None = None

    def __str__(self) -> str:
        figures = self.model_dump(exclude_none=True, exclude={"source", "checkpoint"})
        return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in figures.items()) + f" ({self.source})"


class Fingerprint(Table):
    """Logits in float32 of the fixed prompt, at some positions and for some tokens of the vocabulary.

    Shapes: logits [positions, tokens].
    """

    vocab_size: PositiveInt
    logits: list[list[float]] = Field(min_length=1)


class Behaviour(Table):
    """Nats per token on the text with this sha256, read in windows of `context` tokens."""

    text_sha256: str = Field(pattern=SHA256)
    tokenizer_digest: str = Field(pattern=SHA256)
    context: PositiveInt
    nats_per_token: PositiveFloat
