"""L5: does a base model speak? Its loss on prose against counting and against itself, and what it writes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kssm_mlx.checks.core.registry import REGISTRY, Check, NotMeasurable, check, verdict
from kssm_mlx.checks.pretrained.subject import ENGLISH, Subject
from kssm_mlx.checks.training.language import degenerate_generation
from kssm_mlx.metrics.ngrams import ngram_ladder
from kssm_mlx.models.base import training_mode
from kssm_mlx.training.evaluation import context_gain
from kssm_mlx.weights.audit.manifest_tables import Behaviour

FOLDS = 8
FIGURE = 0.05
GAIN, GAIN_TOKENS = 0.1, 4096  # each token costs a forward pass of its own


def measure_behaviour(subject: Subject) -> Behaviour:
    """Nats/token on the text, for the manifest. Raises: NotMeasurable without a tokenizer."""
    return Behaviour(
        text_sha256=subject.reading.sha256,
        tokenizer_digest=subject.tokenizer.digest,
        context=subject.reading.context,
        nats_per_token=round(subject.evaluation["nats_per_token"], 5),
    )


def count_ngrams(ids: np.ndarray, scored: int, vocab_size: int) -> dict[str, float]:
    """Unigram and bigram nats/token of the first `scored` ids: each eighth of them by counts of all the rest.

    Counted on the text itself a bigram would know every rare word in advance; no model could follow it.
    """
    parts = np.split(ids, np.linspace(0, scored, FOLDS + 1).astype(int)[1:])
    rungs = [
        ngram_ladder(np.concatenate(parts[:i] + parts[i + 1 :]), parts[i], vocab_size) for i in range(FOLDS)
    ]
    return {name: float(np.mean([r[name] for r in rungs])) for name in ("unigram", "bigram")}


@check(
    "W24",
    level="L5",
    title="better than counting",
    source="docs/background/phase-grafts.md#weights-that-were-never-loaded",
)
def better_than_counting(subject: Subject) -> Check:
    """nats/token on the first 8,192 tokens of the text, in windows of 512, against the unigram and the
    bigram of the same text under the same tokenizer (`count_ngrams`).

    Threshold: below both, and below half of ln V, which random and mis-tokenized models never reach.
    Caught: Phase-Mamba Attempt 2, 72 minutes of training beside random weights; RWKV fed GPT-2 ids.
    Sabotage: fresh weights; shuffled ids; a model that knows the unigram only.
    """
    _refuse_other_domain(subject)
    got, V = subject.evaluation, subject.model.args.vocab_size
    rungs = count_ngrams(np.asarray(subject.reading.validation.ids), int(got["tokens"]) + 1, V)
    limit = min(*rungs.values(), math.log(V) / 2)
    below = [name for name, nats in rungs.items() if got["nats_per_token"] < nats]
    return verdict(
        "W24",
        got["nats_per_token"] < limit,
        f"{got['nats_per_token']:.3f} nats/token, "
        + (f"below the {below[-1]}" if below else "above the unigram: it knows nothing of this text"),
        f"< {limit:.3f} (unigram {rungs['unigram']:.3f}, bigram {rungs['bigram']:.3f}, ln V / 2 "
        f"{math.log(V) / 2:.3f})",
        "random weights, a wrong tokenizer (W20), or another domain: declare it and give --text FILE",
        **got,
        **rungs,
    )


@check(
    "W25",
    level="L5",
    title="the figure of the manifest",
    source="docs/background/phase-grafts.md#weights-that-were-never-loaded",
)
def manifest_figure(subject: Subject) -> Check:
    """nats/token on the text against the manifest's figure for this text and tokenizer.

    Threshold: within 5 %: the same weights give the same number to some 1e-3, in bfloat16 to 1e-2; a lost
    layer costs more.
    Caught: C11, a base model that speaks, but worse than it should: a block lost on its way.
    Sabotage: a figure of another model.
    """
    kept = subject.behaviour
    if kept is None:
        published = f"; published elsewhere: {subject.published}" if subject.published else ""
        raise NotMeasurable(f"the manifest has no figure for a text{published}; --write-manifest adds one")
    if kept.text_sha256 != subject.reading.sha256:
        raise NotMeasurable(f"the manifest's figure is of another text ({kept.text_sha256[:12]})")
    if kept.tokenizer_digest != subject.tokenizer.digest:
        return verdict(
            "W25",
            False,
            f"tokenizer {subject.tokenizer.digest[:12]}",
            f"tokenizer {kept.tokenizer_digest[:12]}, with which the figure was measured",
            "get the tokenizer files of the same revision as the weights",
        )
    got = subject.evaluation["nats_per_token"]
    off = got / kept.nats_per_token - 1
    return verdict(
        "W25",
        abs(off) <= FIGURE,
        f"{got:.3f} nats/token ({off:+.1%})",
        f"{kept.nats_per_token:.3f} +- {FIGURE:.0%}",
        "some of the weights are not those the figure was measured with: see W11, W16, W21",
        nats_per_token=got,
        figure=kept.nats_per_token,
    )


@check(
    "W26",
    level="L5",
    title="context lowers the loss",
    source="docs/background/k-ssm.md#no-path-from-token-to-token",
)
def context_is_used(subject: Subject) -> Check:
    """nats/token where every token is predicted from the one before it alone, less nats/token in
    context, on the same windows, 4,096 tokens.

    Threshold: >= 0.1 nats, what a bigram and noise cannot give; pretrained base models gain more than 1.
    Caught: a base model whose recurrence is broken while its embedding and head still work as a bigram.
    Sabotage: a model that knows the bigram only.
    """
    _refuse_other_domain(subject)
    windows = subject.windows(GAIN_TOKENS)
    with training_mode(subject.model, False):
        got = context_gain(subject.model, windows)
    return verdict(
        "W26",
        got["context_gain"] >= GAIN,
        f"{got['context_gain']:.3f} +- {got['context_gain_se']:.3f} nats",
        f">= {GAIN} nats",
        "the state between tokens is lost or damaged: see W17 and W22",
        **got,
    )


@check(
    "W27",
    level="L5",
    title="generation is not degenerate",
    source="docs/background/phase-grafts.md#weights-that-were-never-loaded",
)
def generation_speaks(subject: Subject) -> Check:
    """C19 with prompts from the text: repetition, loops, monotony of what the base model writes.

    Threshold: that of C19: distinct-2, longest run, top share and line breaks, loosened to what the text has.
    Caught: "is is is" of Phase-Mamba Attempt 2.
    Sabotage: a base model that repeats one token.
    """
    _refuse_other_domain(subject)
    context = replace(subject, data=subject.reading)
    return replace(degenerate_generation(context), id="W27", title=REGISTRY["W27"].title, level="L5")


def _refuse_other_domain(subject: Subject) -> None:
    """A base model of another domain is measured on English, but judged only on a text of its own."""
    if subject.domain not in (None, ENGLISH) and subject.text is None:
        nats = subject.evaluation["nats_per_token"]
        raise NotMeasurable(
            f"its manifest declares the domain {subject.domain!r}; give --text FILE of that domain "
            f"(on English it has {nats:.3f} nats/token)"
        )
