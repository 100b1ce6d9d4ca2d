"""Is the data what the recipe says, and is there anything in it to learn? Counting only, no model is
trained.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kssm_mlx.checks.core.probes import probe_length, vocabulary_size
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.data.passages import shared_passages
from kssm_mlx.data.preparation.prepare import read_digest
from kssm_mlx.data.shards import Ids, read_blocks
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.errors import DataError, KssmError
from kssm_mlx.metrics.incontext import in_context
from kssm_mlx.metrics.ngrams import ngram_ladder

LOST = 1e-5  # most of a text that a tokenizer may lose
GRAM = 64  # tokens of a passage that counts as shared
MOST_TRAIN, MOST_VALIDATION = 1 << 20, 1 << 17  # tokens that C29 counts: seconds, and far more than it needs
SEQUENCES = 300  # windows that the in-context coders read


@check("C13", level="P", title="one tokenizer everywhere", source="docs/background/k-ssm.md#two-tokenizers")
def tokenizer_identity(ctx: Context) -> Check:
    """The digest of the tokenizer the model is used with, of the one stored beside the token files, and the
    one the index of these files names; the vocabulary sizes of model, tokenizer and token files; the
    share of the characters of the documents themselves that encoding lost, measured when they were prepared;
    decode, encode, decode of the first 2^18 validation tokens; the share of U+FFFD in that text, its cut
    ends aside.

    Threshold: digests equal, round trip exact, less than 1e-5 of the text lost, U+FFFD < 1e-5. Sizes equal,
    except that a model's table may be padded by less than 1 %, as published base models are (50,280 rows for
    50,277 tokens).
    Caught: token files of GPT-2 (50,257) read with cl100k (100,277); v1's validation table of 61 symbols
    against 65; RWKV with a foreign vocabulary.
    Sabotage: a character tokenizer of another text of the same size; a model with one row too many; a
    tokenizer that lowercases, one that turns rare words into [UNK].
    """
    ctx.need("data", "tokenizer")
    used, stored, V = ctx.tokenizer, ctx.data.tokenizer, ctx.data.vocab_size
    digests = (used.digest, stored.digest, ctx.data.index["tokenizer"]["digest"])
    problems = []
    if len(set(digests)) > 1:
        problems.append(f"digests of tokenizer, data and index {', '.join(d[:8] for d in digests)}")
    rows = vocabulary_size(ctx.model) if ctx.model is not None else V
    if used.vocab_size != V or not 0 <= rows - V < max(1, 0.01 * V):
        problems.append(f"vocabulary of model {rows}, tokenizer {used.vocab_size}, data {V}")
    if not problems:  # the text of foreign ids means nothing
        problems += _list_lost(ctx.data.index["splits"])
        problems += _round_trip(used, ctx.data.validation.ids[: 1 << 18])
    return verdict(
        "C13",
        not problems,
        "; ".join(problems) or f"digest {digests[0][:8]} three times, vocabulary {V}, round trip exact",
        "equal digests and sizes, exact round trip, U+FFFD < 1e-5",
        "prepare the data again with the tokenizer of the model, in an empty folder",
        digests=list(digests),
        vocabulary=[rows, used.vocab_size, V],
    )


def _list_lost(sides: dict[str, dict]) -> list[str]:
    """What the tokenizer threw away of the documents; nothing of files that do not say."""
    shares = {name: side.get("lost") or 0.0 for name, side in sides.items()}
    return [
        f"the tokenizer lost {share:.1%} of the characters of the {name} text"
        for name, share in shares.items()
        if share >= LOST
    ]


def _round_trip(tokenizer, ids: np.ndarray) -> list[str]:
    """What is wrong with decode(encode(text)) on real text, in which separators stand, if anything is."""
    text = tokenizer.decode(np.asarray(ids)).strip("\ufffd")
    if tokenizer.decode(tokenizer.encode_special(text)) != text:
        return ["decode(encode(text)) is not the text"]
    share = text.count("\ufffd") / max(1, len(text))
    return [f"{share:.1e} of the text is U+FFFD"] if not share < LOST else []


@check(
    "C14",
    level="P",
    title="token files are what was written",
    source="docs/background/k-ssm.md#a-header-read-as-tokens",
)
def token_files(ctx: Context) -> Check:
    """The folder of the token files opened again: no .npy header, dtype and length as the index says, 0 <=
    id < V over all ids, document starts in order, sha256 of every file; and the largest id against the rows
    of the model's embedding. All on the CPU in numpy, because MLX gathers out-of-range ids without a word.

    Threshold: exact.
    Caught: .npy files mapped raw, whose 32 header words became ids; n_tokens missing from the index; a
    split looked for under another name.
    Sabotage: a .npy header; an id of V, with and without its sha256 put right; one flipped bit; a short
    file.
    """
    ctx.need("data")
    rows = vocabulary_size(ctx.model) if ctx.model is not None else ctx.data.vocab_size
    try:
        counts = TokenData.open(ctx.data.folder).verify()
        largest = max(counts["train_max_id"], counts["validation_max_id"])
        problem = f"id {largest} for a model of {rows} rows" if largest >= rows else ""
    except DataError as e:
        problem, counts = str(e), {}
    return verdict(
        "C14",
        not problem,
        problem
        or f"{counts['train_tokens']} + {counts['validation_tokens']} ids, largest {largest} of {rows}",
        "raw ids below the vocabulary, hashes as in the index",
        "delete the data folder and prepare it again",
        **counts,
    )


@check(
    "C15",
    level="P",
    title="validation is new text of the same kind",
    source="docs/background/k-ssm.md#validation-text-from-elsewhere, "
    "docs/background/allostasis.md#validation-rows",
)
def split_hygiene(ctx: Context) -> Check:
    """The share of 64-token passages of the validation ids (every start) that occur in the training ids;
    the KL divergence of the unigrams, validation from training smoothed by half a count, in nats; and
    whether the token files are of the corpus that the recipe names.

    Threshold: overlap < 0.1 %: 64 tokens are never shared by chance (measured 0 on TinyShakespeare and
    pydoc, in bytes), so more is copied text. KL < 0.5 nats at the 50,257 tokens of GPT-2 and in proportion
    to ln V below, 0.26 for bytes, which tell domains apart less: measured 0.01 (TinyShakespeare) and 0.03
    (pydoc) inside one corpus, 0.27 for TinyShakespeare against pydoc and 0.73 the other way round.
    Caught: WikiText runs validated on Gutenberg, and windows that overlapped between the splits.
    Sabotage: a validation split that repeats training text; one of another domain; a recipe of another
    corpus.
    """
    ctx.need("data")
    train, validation = ctx.data.train.ids, ctx.data.validation.ids
    overlap = measure_overlap(train, validation)
    kl, limit = unigram_kl(validation, train, ctx.data.vocab_size), kl_limit(ctx.data.vocab_size)
    corpus = ctx.data.index["corpus"]
    recipe = ctx.recipe and ctx.recipe.data
    foreign = recipe is not None and not _is_corpus(recipe, corpus)
    return verdict(
        "C15",
        overlap < 1e-3 and kl < limit and not foreign,
        f"overlap {overlap:.3%}, KL {kl:.3f} nats"
        + (f", ids of {corpus['source']}, recipe of {recipe.source}" if recipe and foreign else ""),
        f"overlap < 0.1 %, KL < {limit:.2f} nats, one corpus",
        _remedy(ctx, overlap, kl >= limit, foreign),
        overlap=overlap,
        kl=kl,
    )


def _remedy(ctx: Context, overlap: float, other_kind: bool, foreign: bool) -> str:
    """What to do about each cause, with the passage where there is one; how to go on all the same."""
    advice = []
    if overlap >= 1e-3:
        advice.append(
            f"training and validation share {_shared_text(ctx)!r}; data.deduplicate = true leaves out what "
            "is said twice"
        )
    if other_kind:
        index = ctx.data.index
        cut = index.get("split", {}).get("method") == "contiguous"
        many = cut and index["corpus"].get("documents", 1) > 1
        ways = (
            "data.split = 'documents' mixes them" if many else "shuffle its parts, or take another part out"
        )
        advice.append(f"the end of the text is of another kind than its beginning: {ways}")
    if foreign:
        advice.append("prepare the data of this recipe again, in an empty folder")
    return "; ".join([*advice, 'or --waive C15="why this is meant"'])


def _shared_text(ctx: Context) -> str:
    """The beginning of the first passage of validation that is also in training."""
    train, validation = ctx.data.train.ids, ctx.data.validation.ids
    before = 0
    for found in shared_passages(validation, train, GRAM):
        if found.any():
            before += int(found.argmax())
            break
        before += found.size
    passage = validation[before : before + GRAM]
    tokenizer: Any = ctx.tokenizer or getattr(ctx.data, "tokenizer", None)
    try:
        return tokenizer.decode(passage)[:60]
    except (KssmError, AttributeError):  # another tokenizer's ids, which C13 tells, or none
        return f"ids {passage[:12].tolist()} ..."


def _is_corpus(data: Any, corpus: dict) -> bool:
    """Whether a recipe's source is the corpus of the token files, by name or, moved elsewhere, by content."""
    if data.origin == corpus["source"]:
        return True
    if data.sources:
        return False
    try:
        return not data.deduplicate and read_digest(data.source) == corpus["digest"]
    except KssmError:  # it cannot be read here, so nothing says that it is the same
        return False


def measure_overlap(train: Ids, validation: Ids, length: int = GRAM) -> float:
    """The share of the validation's `length`-token passages that occur in training; `length` a power of two.

    Raises: NotMeasurable for a validation split shorter than one passage.
    """
    if validation.size < length:
        raise NotMeasurable(f"{validation.size} validation tokens, {length} needed")
    shared = sum(int(found.sum()) for found in shared_passages(validation, train, length))
    return shared / (validation.size - length + 1)


def kl_limit(vocab_size: int) -> float:
    """0.5 nats at the vocabulary of GPT-2, in proportion to ln V for smaller ones."""
    return 0.5 * min(1.0, math.log(vocab_size) / math.log(50257))


def unigram_kl(validation: Ids, train: Ids, vocab_size: int) -> float:
    """KL(validation || training) of the token frequencies in nats, the training counts smoothed by 1/2."""
    p = _count_tokens(validation, vocab_size) / validation.size
    q = (_count_tokens(train, vocab_size) + 0.5) / (train.size + 0.5 * vocab_size)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def _count_tokens(ids: Ids, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, np.int64)
    for block in read_blocks(ids):
        counts += np.bincount(block, minlength=vocab_size)
    return counts


@check(
    "C29",
    level="P",
    title="the order of the tokens can be learned",
    source="docs/background/phase-grafts.md#random-tensors-in-place-of-a-model, "
    "docs/background/allostasis.md#the-broken-task",
    false_alarm=1e-6,
)
def order_is_learnable(ctx: Context) -> Check:
    """By counting: gain = 1 - (least nats/token of any predictor) / ln V, over the unigram, bigram and
    trigram of the training tokens scored on validation, and the adaptive in-context coders (orders 1-3,
    strides 1-4) on up to 300 validation windows. The control is the same after the tokens of each split are
    permuted. What counts is order gain = gain - control: what a model can learn beyond the frequencies of the
    tokens.

    Threshold: order gain >= 0.05 passes, < 0.01 fails, between warns (G2, G4); the evidence, order gain x ln
    V x tokens scored, >= 15 nats, as likely by chance as five standard errors (G3); the entropy of the
    unigram >= 0.1 ln V, or a constant answer is already good (G5). A pass is proof; a failure is not, where a
    rule never repeats a context; the rows of a task, whose rule is known, are judged by G1 to G5 instead.
    Whether this model learns one batch of it is N18.
    Caught: random logits in place of data (Phase-RWKV Attempt 3) and the broken interleaved task (gain 0.00
    against 0.92 for the sound one).
    Sabotage: uniform random tokens; the text with its tokens permuted; one token repeated.
    """
    ctx.need("data")
    if getattr(ctx.data, "task", None) is not None:
        raise NotMeasurable("a task has a rule, which G2 runs; counting is for text")
    V, rng = ctx.data.vocab_size, np.random.default_rng(ctx.seed)
    train = np.asarray(ctx.data.train.ids[:MOST_TRAIN])
    validation = np.asarray(ctx.data.validation.ids[:MOST_VALIDATION])
    length = probe_length(ctx)
    real = best_by_counting(train, validation, V, length)
    control = best_by_counting(rng.permutation(train), rng.permutation(validation), V, length)
    gain = (control["best"] - real["best"]) / math.log(V)
    evidence, entropy = gain * math.log(V) * real["scored"], real["unigram"] / math.log(V)
    sound = evidence >= 15 and entropy >= 0.1
    return verdict(
        "C29",
        "pass" if gain >= 0.05 and sound else "warn" if gain >= 0.01 and sound else "fail",
        f"order gain {gain:.3f} ({real['name']} {real['best']:.3f}, permuted {control['best']:.3f}), "
        f"evidence {evidence:.3g} nats, entropy {entropy:.2f} ln V",
        "gain >= 0.05, evidence >= 15 nats, entropy >= 0.1 ln V",
        "the tokens look independent of each other: read the decoded text, suspect tokenizer and shuffling",
        gain=gain,
        evidence=evidence,
        entropy=entropy,
        real=real,
        permuted=control,
    )


def best_by_counting(train: np.ndarray, validation: np.ndarray, vocab_size: int, length: int) -> dict:
    """The best counting predictor: its name, nats/token and tokens scored; and the unigram's nats/token."""
    ladder = ngram_ladder(train, validation, vocab_size)
    rungs = {name: ladder[name] for name in ("uniform", "unigram", "bigram", "trigram")}
    count = min(SEQUENCES, validation.size // length)
    scored = dict.fromkeys(rungs, validation.size)
    if count:
        coder = in_context(validation[: count * length].reshape(count, length), vocab_size)
        name = f"in-context order {coder.order} stride {coder.stride}"
        rungs[name], scored[name] = coder.code_length, count * (length - 1)
    best = min(rungs, key=rungs.__getitem__)
    return {"name": best, "best": rungs[best], "scored": scored[best], "unigram": rungs["unigram"]}
