"""Prompt tuning: vectors that a model reads before every text are learned, every weight of it stays as it is.

What it has read of them is its state, so a text costs no more than without: the vectors are read once, when
texts begin, and every row goes on from there. They begin as the embeddings of tokens that are drawn.

Source: Lester, Al-Rfou & Constant 2021, arXiv 2104.08691; for a recurrence the prompt need not be kept.
"""

from __future__ import annotations

import mlx.core as mx

from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import LanguageModel
from kssm_mlx.models.state_tuning import StateTuned


class PromptTuned(StateTuned):
    """`host`, frozen, that reads `prompt` [P, D] before every text.

    Raises: ConfigError as `StateTuned`, and for a prompt without a vector.
    """

    def __init__(self, host: LanguageModel, length: int, seed: int = 0):
        if length < 1:
            raise ConfigError(f"model.prompt_tokens is {length}; expected at least 1")
        super().__init__(host)
        del self.initial
        drawn = mx.random.randint(0, self.args.vocab_size, (1, length), key=mx.random.key(seed))
        self.prompt = self.embed(drawn)[0].astype(mx.float32)

    def find_beginning(self) -> list[dict[str, mx.array]]:
        """The cache of the host behind the prompt; a gradient goes through it into the vectors."""
        x = self.prompt[None].astype(self.embed(mx.zeros((1, 1), mx.int32)).dtype)
        carried, found = None, []
        for i in range(len(self.layers)):
            slots = self.slots_of(i)
            x, entry, carried, _ = self.runner(i, None)(x, [None] * len(slots), carried, None, None)
            found.append({slot: array[0] for slot, array in zip(slots, entry, strict=True)})
        return found

    @property
    def no_decay(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.host.no_decay, "prompt")

    @property
    def cast_predicate(self):
        """What is learned stays fp32."""
        allows = self.host.cast_predicate
        return lambda path: path != "prompt" and allows(path.removeprefix("host."))

    def component(self, path: str) -> str:
        return "prompt" if path == "prompt" else super().component(path)


def begin_text(host: LanguageModel, prompt: int, seed: int = 0) -> StateTuned:
    """A model that learns what texts begin with: `prompt` vectors, or its initial state where that is 0."""
    return PromptTuned(host, prompt, seed) if prompt else StateTuned(host)
