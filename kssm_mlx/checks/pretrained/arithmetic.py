"""L4: does the base model compute? Its tokenizer fits, its numbers are finite and the same in every form."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from kssm_mlx.checks.core.probes import (
    dtype_tolerance,
    logit_spread,
    to_numpy,
)
from kssm_mlx.checks.core.registry import REGISTRY, Check, NotMeasurable, check, verdict
from kssm_mlx.checks.model.sequence import step_by_step
from kssm_mlx.checks.pretrained.subject import Subject, read_english
from kssm_mlx.errors import DataError
from kssm_mlx.models.base import flatten, training_mode, with_parameters
from kssm_mlx.weights.audit.manifest_tables import Fingerprint

# How many ids the tokenizers people use give; embeddings have that many rows or a few more, see `_pad_sizes`.
KNOWN = {
    256: "bytes",
    32_000: "Llama 2",
    50_257: "GPT-2",
    50_277: "GPT-NeoX-20B (Mamba, RWKV-4 Pile)",
    65_024: "Falcon",
    65_530: "RWKV World",
    100_277: "cl100k (GPT-4)",
    128_256: "Llama 3",
}
PROMPT, POSITIONS, TOKENS = 64, 8, 16
SAME_LOGITS = 1e-2, 5e-2  # float32 weights, weights with a matrix in half precision


@check("W28", level="L4", title="sizes of the manifest", source="docs/background/weights.md#six-layers")
def manifest_sizes(subject: Subject) -> Check:
    """architecture, embedding rows, width and depth of the configuration against the manifest's.

    Threshold: equal.
    Caught: a repository whose name promises another size than its files have.
    Sabotage: a manifest of a model twice as deep.
    """
    subject.need("model")
    if subject.facts is None:
        raise NotMeasurable("no manifest says how large it is")
    facts = subject.facts.model_dump()
    got = {name: getattr(subject.model.args, name, None) for name in facts}
    wrong = [name for name in facts if got[name] != facts[name]]
    return verdict(
        "W28",
        not wrong,
        ", ".join(f"{name} {got[name]}" for name in wrong or facts),
        ", ".join(f"{name} {facts[name]}" for name in wrong or facts),
        "these are the files of another model than the manifest is of",
    )


def judge_vocabulary(tokenizer, embedding_rows: int) -> Check:
    """W20 of a tokenizer and an embedding, see `vocabulary_fits`."""
    ids = tokenizer.vocab_size
    fits = [name for size, name in KNOWN.items() if embedding_rows in _pad_sizes(size) and size != ids]
    text = read_english()[:2000]
    numbers = {"ids": ids, "rows": embedding_rows}
    if ids <= embedding_rows and embedding_rows in _pad_sizes(ids):
        survives = _survives_encoding(tokenizer, text)
        got = (
            f"{ids:,} ids for {embedding_rows:,} rows, text {'survives' if survives else 'does not survive'}"
        )
        fix = "the tokenizer loses text; use the tokenizer.json the model was published with"
        return verdict(
            "W20", survives, got, "ids for every row but padding, text there and back", fix, **numbers
        )
    return verdict(
        "W20",
        "fail" if ids > embedding_rows or fits else "warn",
        f"{ids:,} ids ({KNOWN.get(ids, tokenizer.name)}) for {embedding_rows:,} rows",
        f"{embedding_rows:,} ids, or fewer by the padding of the embedding",
        f"likely the wrong tokenizer: this embedding fits {' or '.join(fits)}"
        if fits
        else "use the tokenizer the model was trained with; its repository has it",
        **numbers,
    )


def _survives_encoding(tokenizer, text: str) -> bool:
    """Whether the text comes back, give or take spaces at its ends, which some decoders drop."""
    try:
        return tokenizer.decode(tokenizer.encode(text)).strip() == text.strip()
    except DataError:  # a tokenizer of characters says aloud that it cannot write this text
        return True


def _pad_sizes(size: int) -> set[int]:
    """Rows that an embedding of `size` tokens may have."""
    return {-(-size // multiple) * multiple for multiple in (2**i for i in range(10))}


@check("W20", level="L4", title="tokenizer and embedding", source="docs/background/k-ssm.md#two-tokenizers")
def vocabulary_fits(subject: Subject) -> Check:
    """the number of ids of the tokenizer against the rows of the embedding, and a text there and back.

    Threshold: as many rows as ids, or that many rounded up to a multiple of a power of two up to 512, which
    is how embeddings are padded. More ids than rows always fail: MLX gathers without a bounds check. Fewer
    fail where the rows are those of another known tokenizer, else they warn.
    Caught: GPT-2's and cl100k's ids in Mamba and RWKV, "compatible because the largest id is below 50,277".
    Sabotage: every pair of known tokenizers.
    """
    subject.need("model")
    if subject.tokenizer is None:
        raise NotMeasurable("no tokenizer; put the tokenizer.json of the model beside the weights")
    return judge_vocabulary(subject.tokenizer, subject.model.args.vocab_size)


def fingerprint_of(model) -> Fingerprint:
    """Logits of a fixed prompt in float32 at 8 positions for 16 tokens, to six digits.

    The prompt is a walk through the vocabulary in large steps, so that it needs no tokenizer.
    """
    V = model.args.vocab_size
    prompt = (np.arange(PROMPT, dtype=np.int64) * 7919 + 17) % V
    logits = _logits(model, prompt[None], mx.float32)[0]
    at = np.linspace(0, PROMPT - 1, POSITIONS).astype(int)
    of = np.linspace(0, V - 1, TOKENS).astype(int)
    kept = [[float(f"{x:.6g}") for x in row] for row in logits[np.ix_(at, of)]]
    return Fingerprint(vocab_size=V, logits=kept)


@check("W21", level="L4", title="fingerprint", source="docs/background/weights.md#six-layers")
def matches_fingerprint(subject: Subject) -> Check:
    """the logits of the fixed prompt against those the manifest keeps, as max |Δ| / std(kept logits).

    Threshold: <= 1e-2: TF32 products round by 1e-3, and other weights move logits by their own size. 5e-2
    where weights are in half precision: they may have been rounded since.
    Caught: weights that load without an error and are not those that were verified.
    Sabotage: one matrix scaled by 1.05; another model.
    """
    subject.need("model")
    if subject.fingerprint is None:
        raise NotMeasurable("the manifest has no fingerprint; --write-manifest adds one")
    kept, got = (np.array(f.logits) for f in (subject.fingerprint, fingerprint_of(subject.model)))
    if kept.shape != got.shape or subject.fingerprint.vocab_size != subject.model.args.vocab_size:
        gap = float("inf")
    else:
        gap = float(np.abs(got - kept).max()) / logit_spread(kept)
    limit = dtype_tolerance(subject.model, *SAME_LOGITS)
    return verdict(
        "W21",
        gap <= limit,
        f"logits differ by {gap:.1e} of their spread",
        f"<= {limit:g}",
        "these are not the weights of the manifest, or this machine computes otherwise: see W11 and H1",
        gap=gap,
    )


@check(
    "W22",
    level="L4",
    title="parallel = recurrent",
    source="docs/background/phase-grafts.md#a-token-without-its-state",
)
def parallel_is_recurrent(subject: Subject) -> Check:
    """C5 on the base model: logits of one call, of one token at a time, and of pieces with the state
    handed over, as max |Δ| / std(logits).

    Threshold: that of C5: <= 1e-4 in float32, 2e-2 below.
    Caught: measure.py and test_baseline, which fed one token at a time without state.
    Sabotage: a base model that ignores its state.
    """
    return replace(step_by_step(subject), id="W22", title=REGISTRY["W22"].title, level="L4")


@check(
    "W23", level="L4", title="finite in float32 and bfloat16", source="docs/background/weights.md#six-layers"
)
def finite_logits(subject: Subject) -> Check:
    """64 tokens with all float weights in float32, then in bfloat16 but for those that must stay.

    Threshold: every logit finite in both. How far they differ, in units of their spread, is reported.
    Caught: overflow in half precision, which shows as NaN only in the middle of a text.
    Sabotage: a NaN in a weight; a weight that only float32 can hold.
    """
    subject.need("model")
    V = subject.model.args.vocab_size
    tokens = np.random.default_rng(subject.seed).integers(0, V, (1, PROMPT))
    logits = {d: _logits(subject.model, tokens, d) for d in (mx.float32, mx.bfloat16)}
    bad = [str(d).removeprefix("mlx.core.") for d, x in logits.items() if not np.isfinite(x).all()]
    gap = float(np.abs(logits[mx.float32] - logits[mx.bfloat16]).max())
    return verdict(
        "W23",
        not bad,
        f"not finite in {' and '.join(bad)}"
        if bad
        else f"finite, {gap / logit_spread(logits[mx.float32]):.1e} apart",
        "finite logits in float32 and bfloat16",
        "a weight is damaged (see W13, W16)" if "float32" in bad else "run it in float32",
    )


def _logits(model, tokens: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """float32 logits [B, T, V] with the weights as `dtype`; in float32, really all of them."""

    def cast(name: str, array: mx.array) -> mx.array:
        fixed = not mx.issubdtype(array.dtype, mx.floating)  # quantised weights are packed into integers
        return (
            array
            if fixed or (dtype != mx.float32 and not model.cast_predicate(name))
            else array.astype(dtype)
        )

    weights = tree_unflatten([(n, cast(n, a)) for n, a in flatten(model.parameters()).items()])
    with training_mode(model, False):
        return with_parameters(model, weights, lambda: to_numpy(model(mx.array(tokens, mx.int32))))
