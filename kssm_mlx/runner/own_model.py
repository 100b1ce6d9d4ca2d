"""A model that somebody wrote in a package of their own, for `kssm verify --model mypackage.module:build`.

    def build():                    # or build(seed), which lets checks make a second one
        return MyModel(...)         # or (model, tokenizer), or kssm_mlx.load(...) for a trained one

All it must be is an `mlx.nn.Module` that maps ids [B, T] to logits [B, T, V]. With `make_cache`, `forward`
and the rest of models/base.py more of it can be checked; without, those checks are "not measurable". A
`forward` that is something else is left alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.checks.core.registry import Context, NotMeasurable
from kssm_mlx.errors import ConfigError
from kssm_mlx.models.base import Intervention, LanguageModel, Output, Trained, refuse_unknown_clamps


def open_own_model(spec: str) -> Context:
    """The model that a `module:callable` builds, alone: the checks of a model need nothing else.

    Raises: ConfigError for what cannot be imported or called, and for what is no language model.
    """
    build = _callable(spec)
    takes_seed = "seed" in inspect.signature(build).parameters
    try:
        built = build(seed=0) if takes_seed else build()
    except Exception as e:
        raise ConfigError(f"{spec} raised {type(e).__name__}: {e}; it is called without arguments") from e
    opened = built if isinstance(built, Trained) else Trained(*_pair(built), spec, "")
    model = wrap_model(opened.model, spec)
    return Context(
        model=model,
        config=model.args,
        tokenizer=opened.tokenizer,
        base_digest=opened.digest or None,
        base_notes=opened.notes,
        builder=partial(_build_again, build, spec) if takes_seed else None,
    )


def _build_again(build: Callable, spec: str, seed: int) -> nn.Module:
    """Another model of the same kind."""
    return wrap_model(_pair(build(seed=seed))[0], spec)


def _callable(spec: str) -> Callable:
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"--model takes module:callable such as mypackage.mymodel:build, got {spec!r}")
    if str(Path.cwd()) not in sys.path:  # as `python -m` does
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except Exception as e:
        raise ConfigError(f"cannot import {spec}: {type(e).__name__}: {e}") from e
    if not callable(found):
        raise ConfigError(f"{spec} is a {type(found).__name__}; expected a callable that returns a model")
    return found


def _pair(built: Any) -> tuple[Any, Any]:
    return built if isinstance(built, tuple) and len(built) == 2 else (built, None)


def wrap_model(model: Any, spec: str) -> nn.Module:
    """The model itself where it keeps the protocol of models/base.py, else wrapped so that it does.

    Raises: ConfigError for what does not map ids [B, T] to logits [B, T, V].
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{spec} gave a {type(model).__name__}; expected an mlx.nn.Module, or it and a tokenizer"
        )
    tokens = mx.zeros((1, 3), mx.int32)
    try:
        logits = model(tokens)
    except Exception as e:
        raise ConfigError(f"{spec} cannot read ids [1, 3]: {type(e).__name__}: {e}") from e
    if not isinstance(logits, mx.array) or logits.ndim != 3 or logits.shape[:2] != (1, 3):
        got = getattr(logits, "shape", type(logits).__name__)
        raise ConfigError(f"{spec} gave {got} for ids [1, 3]; expected logits (1, 3, V)")
    return model if _keeps_protocol(model, tokens) else Plain(model, logits.shape[-1])


def _keeps_protocol(model: nn.Module, tokens: mx.array) -> bool:
    """Whether it says its vocabulary, and its `forward` is the one that checks, steps and evaluation call."""
    if not (hasattr(model, "forward") and hasattr(getattr(model, "args", None), "vocab_size")):
        return False
    noise = {"key": None} if getattr(model, "stochastic", False) else {}
    try:
        out = cast(LanguageModel, model).forward(tokens, None, None, resets=None, **noise)
    except Exception:  # a function of another kind, whose arguments are its own affair
        return False
    return isinstance(out, Output) and out.logits.shape == (*tokens.shape, cast(Any, model).args.vocab_size)


@dataclass(frozen=True)
class PlainConfig:
    vocab_size: int
    model_type: str


class Plain(nn.Module):
    """Gives any model the names that checks use: `args.vocab_size`, and `forward` with an empty trace.

    What the model says of its parameters and its noise is passed on. A `hidden` of its own is not: what it
    returns is unknown. Noise comes from MLX's global stream.
    """

    clamp_sites = ()

    def __init__(self, model: nn.Module, vocab_size: int):
        super().__init__()
        self.model = model
        self.model_type = type(model).__name__
        self.args = PlainConfig(vocab_size, self.model_type)
        self.no_decay = tuple(getattr(model, "no_decay", ()))
        self.knobs = tuple(f"model.{name}" for name in getattr(model, "knobs", ()))
        self.stochastic = bool(getattr(model, "stochastic", False))

    @property
    def layers(self) -> list[nn.Module]:
        return getattr(self.model, "layers", [])

    @property
    def make_cache(self):
        """AttributeError, which `hasattr` reads as none, where the model has none."""
        return self.model.make_cache

    def __call__(self, tokens: mx.array, cache: list | None = None) -> mx.array:
        return self.model(tokens) if cache is None else self.model(tokens, cache)

    def forward(
        self,
        tokens: mx.array,
        cache: list | None = None,
        intervention: Intervention | None = None,
        *,
        resets: mx.array | None = None,
        key: mx.array | None = None,
    ) -> Output:
        del key
        if resets is not None:
            raise NotMeasurable(f"{self.model_type} takes no resets, and there is more than one document")
        refuse_unknown_clamps(intervention, self.clamp_sites, len(self.layers))
        return Output(self(tokens, cache), cast(list, cache), {})  # None, of a call without one
