"""A run that starts from somebody else's weights: are they in the model, and is it the model they were?

W1 to W28 judge a base model where it lies; these two look at what became of it in the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, verdict
from kssm_mlx.checks.pretrained import behaviour
from kssm_mlx.checks.pretrained.subject import Subject
from kssm_mlx.models.base import flatten, number
from kssm_mlx.weights.audit.shipped_manifests import shipped_manifests
from kssm_mlx.weights.hub.resolve import resolve
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.naming.keymaps import TRANSFORMS
from kssm_mlx.weights.naming.name_map import configuration, map_names, skeleton
from kssm_mlx.weights.quantize import QUANTISED

MOVED = 0.1


@check(
    "C10",
    level="P",
    title="the base model's weights are in the model",
    source="docs/background/phase-grafts.md#weights-that-were-never-loaded",
)
def base_model_tensors(ctx: Context) -> Check:
    """Every tensor of the base model's files, one at a time, against the parameter of the running model that
    it is, bit for bit in the model's precision, wherever adapters and grafts have put it; what the recipe put
    into few bits, against the same of the file's; once there were updates, those that are not trained. And
    ‖w - w₀‖ / ‖w₀‖ of all matrices of the files against the initialisation w₀ that the family starts from.

    Threshold: 100 % of the tensors, all equal; distance > 0.1, where independent numbers are 1.4 apart. (W19
    looks for random numbers of other seeds.)
    Caught: Attempt 2, whose loader was a stub, so that 10.3 GB of weights lay unused beside random ones; the
    grafted block 32, which was built anew.
    Sabotage: a base model with one block initialised again; one without it; a fresh model in the base model's
    place; files of a fresh model.
    """
    pairs = list(_pairs(_need_base_model(ctx)))
    trained = flatten(ctx.model.trainable_parameters()) if ctx.step else {}
    frozen = [pair for pair in pairs if pair.ours not in trained]
    if not frozen:
        raise NotMeasurable("the base model's own weights are trained, so they have moved; see C8")
    absent = [pair.name for pair in frozen if pair.ours is None]
    other = [pair.name for pair in frozen if pair.ours is not None and not pair.same]
    distance = math.sqrt(sum(p.moved for p in pairs) / max(sum(p.size for p in pairs), 1e-12))
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}"
        for what, names in (("absent", absent), ("not those of the files", other))
        if names
    ]
    problems += [f"the files are {distance:.2g} from a fresh model"] if not distance > MOVED else []
    return verdict(
        "C10",
        not problems,
        "; ".join(problems)
        or f"{len(frozen)} of {len(pairs)} tensors bit for bit, {distance:.2g} from a fresh model",
        f"all of the base model's tensors, equal, > {MOVED:g} from a fresh model",
        "load the base model first and build around its arrays; never build a block anew in its place",
        absent=absent,
        other=other,
        distance=distance,
    )


class Pair(NamedTuple):
    """A tensor of the base model's files: its name there; that of the parameter it is, or None; whether the
    two are equal; of a matrix ‖w - w₀‖² and ‖w₀‖², else 0.
    """

    name: str
    ours: str | None
    same: bool
    moved: float
    size: float


def _need_base_model(ctx: Context) -> Context:
    """Raises: NotMeasurable for a model that began fresh, or whose files are not known."""
    ctx.need("model")
    if ctx.base_digest is None:
        raise NotMeasurable("the model began fresh: there is no base model")
    if "path" not in ctx.base_notes:
        raise NotMeasurable("where the base model's files are is not recorded")
    return ctx


def _pairs(ctx: Context) -> Iterator[Pair]:
    """Every tensor of the files, one in memory at a time."""
    container = open_container(resolve(ctx.base_notes["path"]).path)
    config = configuration(container)
    model = skeleton(config, container)
    names = map_names(container, config, model)
    fresh, running = flatten(model.parameters()), flatten(ctx.model.parameters())
    modules = dict(ctx.model.named_modules())
    del model  # its arrays are computed one by one, as they are taken out of `fresh`
    for ours, (source, transform) in names.pairs.items():
        info = container.info(source)
        stored = TRANSFORMS[transform](info.array(info.map()))
        within = [name for name in running if _is_path_within(ours, name)]
        found = min(within, key=lambda name: name.count("."), default=None)
        holder = modules.get(found.rpartition(".")[0]) if found else None
        same = found is not None and (
            _same_in_few_bits(stored, holder)
            # Put into few bits by the recipe; files that are in few bits already have the parameter's own
            # shape.
            if isinstance(holder, QUANTISED) and stored.shape != running[found].shape
            else _is_same_weight(stored, running[found])
        )
        yield Pair(source, found, same, *_squares(stored, fresh.pop(ours)))


def _is_path_within(name: str, path: str) -> bool:
    """Whether `path` is `name` with parts put in between: in_proj.weight is in_proj.linear.weight."""
    parts = iter(path.split("."))
    # `in` on an iterator goes on from where it was, so the parts have to come in this order.
    return name.split(".")[-1] == path.split(".")[-1] and all(part in parts for part in name.split("."))


def _is_same_weight(stored: mx.array, running: mx.array) -> bool:
    return stored.shape == running.shape and bool(mx.array_equal(stored.astype(running.dtype), running))


def _same_in_few_bits(stored: mx.array, holder: nn.QuantizedLinear | nn.QuantizedEmbedding) -> bool:
    """Whether a full matrix of the files, put into few bits, is what a module holds."""
    if stored.ndim != 2 or stored.shape[-1] != holder.weight.shape[-1] * 32 // holder.bits:
        return False
    weight, scales, *_ = mx.quantize(stored, holder.group_size, holder.bits, mode=holder.mode)
    return _is_same_weight(weight, holder.weight) and _is_same_weight(scales, holder.scales)


def _squares(stored: mx.array, fresh: mx.array) -> tuple[float, float]:
    if stored.ndim < 2 or not mx.issubdtype(stored.dtype, mx.floating):
        return 0.0, 0.0
    w, w0 = stored.astype(mx.float32), fresh.astype(mx.float32)
    return number(mx.sum(mx.square(w - w0))), number(mx.sum(mx.square(w0)))


@check(
    "C11",
    level="P",
    title="the base model can read",
    source="docs/background/phase-grafts.md#weights-that-were-never-loaded",
    passes=8,
)
def base_model_quality(ctx: Context) -> Check:
    """W24 and W25 (`kssm verify --explain W24`) of the model as the run uses it, with what was put into it:
    nats/token on the first 8,192 tokens of the package's English under the run's tokenizer, at most 16
    windows of 512, against counting and against the figure of the manifest.

    Threshold: below unigram, bigram and half of ln V; within 5 % of the figure, where there is one. A base
    model that passed `kssm verify-weights` on a text of its own may not read English: then it warns.
    Caught: Attempt 2 and RWKV with the tokenizer of another model: one line of this would have ended both.
    Sabotage: random weights; a figure of another model; ids of another tokenizer.
    """
    _need_base_model(ctx)
    known = shipped_manifests().get(ctx.recipe.model.base) if ctx.recipe is not None else None
    of_manifest: dict[str, Any] = {
        name: getattr(known, name, None) for name in ("domain", "behaviour", "published")
    }
    subject = Subject(model=ctx.model, config=ctx.config, tokenizer=ctx.tokenizer, **of_manifest)
    reads, *figure = found = [behaviour.better_than_counting(subject), *_figure(subject)]
    worst = min(found, key=lambda c: c.ok)
    elsewhere = ctx.base_notes.get("verified") == "L5" and all(c.ok for c in figure)
    return verdict(
        "C11",
        "pass" if worst.ok else "warn" if elsewhere else "fail",
        "; ".join(f"{c.id} {c.got}" for c in found),
        worst.expected,
        worst.fix,
        **reads.numbers,
    )


def _figure(subject: Subject) -> list[Check]:
    """W25, where the manifest has a figure for this text."""
    with suppress(NotMeasurable):
        return [behaviour.manifest_figure(subject)]
    return []
