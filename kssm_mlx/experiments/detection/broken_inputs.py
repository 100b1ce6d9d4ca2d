"""Data that teach something else than was meant, and trainers that ask for something else."""

from __future__ import annotations

import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.data import alignment
from kssm_mlx.checks.training import locks
from kssm_mlx.data.batches import random_batch
from kssm_mlx.data.tokenizers.plain import CharTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.experiments.detection.bench import Bench, make_sentences, with_ids
from kssm_mlx.experiments.detection.sabotage import sabotage
from kssm_mlx.training import loop, losses, step
from kssm_mlx.training.optimizers import updates
from kssm_mlx.training.state import from_arrays


@sabotage("C29")
def shuffled_tokens(bench: Bench) -> Context:
    """The ids of each split in random order."""
    context, random = bench.fresh("mamba"), np.random.default_rng(0)
    sides = (random.permutation(side.ids) for side in (context.data.train, context.data.validation))
    return with_ids(context, *sides)


@sabotage("C29")
def one_token_for_ever(bench: Bench) -> Context:
    """A file of one id."""
    return with_ids(bench.fresh("mamba"), np.full(90_000, 3), np.full(9_000, 3))


@sabotage("C15")
def validation_is_training(bench: Bench) -> Context:
    """The held-out text is a piece of the training text."""
    context = bench.fresh("kssm")
    return with_ids(context, validation=context.data.train.ids[1000:11_000])


@sabotage("C15")
def duplicated_shards(bench: Bench) -> Context:
    """The corpus was downloaded twice, and both copies are in the file."""
    source = bench.text("twice", 2 * make_sentences(2000))
    return bench.fresh("mamba", data={"source": source, "split": "contiguous"})


@sabotage("C15")
def validation_of_another_domain(bench: Bench) -> Context:
    """Digits are held out from a text of sentences."""
    digits = np.random.default_rng(0).integers(0, 3, 9_000)
    return with_ids(bench.fresh("kssm"), validation=digits)


def copy_token_files(bench: Bench, context: Context, name: str):
    """A folder with the context's token files, which may be damaged."""
    return shutil.copytree(context.data.folder, bench.home / name, dirs_exist_ok=True)


@sabotage("C14")
def id_beyond_the_vocabulary(bench: Bench) -> Context:
    """One id of the validation file is as large as the vocabulary; MLX gathers it without a word."""
    context = bench.fresh("rwkv")
    folder, ids = copy_token_files(bench, context, "beyond"), np.array(context.data.validation.ids)
    ids[17] = context.data.vocab_size
    ids.tofile(folder / "validation.bin")
    return replace(context, data=TokenData.open(folder))


@sabotage("C14")
def flipped_bit(bench: Bench) -> Context:
    """One bit of the training file."""
    context = bench.fresh("kssm")
    folder = copy_token_files(bench, context, "flipped")
    raw = bytearray((folder / "train.bin").read_bytes())
    raw[1000] ^= 1
    (folder / "train.bin").write_bytes(raw)
    return replace(context, data=TokenData.open(folder))


@sabotage("C13")
def tokenizer_of_another_text(bench: Bench) -> Context:
    """Another alphabet of the same size."""
    context = bench.fresh("transformer")
    characters = "".join(map(chr, range(0x100, 0x100 + context.data.vocab_size)))
    return replace(context, tokenizer=CharTokenizer(characters))


@sabotage("C13")
def one_row_too_many(bench: Bench) -> Context:
    """The model's table is a row larger than the vocabulary."""
    context = bench.fresh("rwkv")
    vocab_size = context.data.vocab_size + 1
    config = models.config_from_dict({**models.config_to_dict(context.config), "vocab_size": vocab_size})
    return replace(context, model=models.build(config), config=config)


@sabotage("C31")
def padding_nobody_marked(bench: Bench) -> Context:
    """Lines filled up to 120 characters, and the filling is a target like any other."""
    lines = [line.ljust(120, "_") for line in make_sentences(800).splitlines()]
    return bench.fresh("mamba", data={"source": bench.text("padded", "\n".join(lines))})


@sabotage("C31")
def padding_scored(bench: Bench) -> Context:
    """The mean loss is divided by the padding, too."""

    def all_counted(logits, targets):
        return losses.cross_entropy(logits, targets)[0], mx.array(targets.size)

    bench.patch(alignment, "cross_entropy", all_counted)
    return bench.fresh("transformer")


@sabotage("C30")
def off_by_one_targets(bench: Bench) -> Context:
    """The trainer asks for the token after the next."""
    bench.patch(step, "split_rows", lambda rows: (rows[:, :-1], mx.roll(rows, -2, 1)[:, :-1]))
    return bench.fresh("rwkv")


@sabotage("C30")
def targets_are_the_inputs(bench: Bench) -> Context:
    """The trainer asks for the token that was just read."""
    bench.patch(step, "split_rows", lambda rows: (rows[:, :-1], rows[:, :-1]))
    return bench.fresh("kssm")


@sabotage("N18")
def shuffled_targets(bench: Bench) -> Context:
    """Every row is asked for the targets of another."""

    def swap_targets(rows):
        inputs, targets = losses.split_rows(rows)
        return inputs, targets[::-1]

    bench.patch(step, "split_rows", swap_targets)
    return bench.fresh("mamba")


@sabotage("N18")
def optimizer_on_stale_parameters(bench: Bench) -> Context:
    """Every update starts from the parameters that the optimizer was given at first."""
    first: dict = {}

    def stale(finite, optimizer, params, grads, opt, lr, real=updates.update_if):
        _, kept = first.setdefault(id(optimizer), (optimizer, params))
        return real(finite, optimizer, kept, grads, opt, lr)

    bench.patch(updates, "update_if", stale)
    return bench.fresh("mamba")


@sabotage("C8", "C37")
def learning_rate_zero(bench: Bench) -> Context:
    """A run at 1e-30."""
    return bench.train_run("mamba", name="still", train={"learning_rate": 1e-30})


@sabotage("C17")
def one_batch_for_ever(bench: Bench) -> Context:
    """The loader forgets which step it is."""

    def repeat_first_batch(split, seed, step, batch_size, context):
        return random_batch(split, seed, 0, batch_size, context)

    bench.patch(loop, "random_batch", repeat_first_batch)
    return bench.train_run("kssm", name="same")


@sabotage("C33")
def schedule_begins_anew_on_resume(bench: Bench) -> Context:
    """A checkpoint that does not say how far the schedule was."""

    def forgetful(*arrays):
        return from_arrays(*arrays)._replace(step=mx.array(0, mx.int32))

    bench.patch(loop, "from_arrays", forgetful)
    return bench.fresh("mamba")


@sabotage("C39")
def lock_that_locks_nothing(bench: Bench) -> Context:
    """Whoever asks gets the run's folder."""
    bench.patch(locks, "LOCK", "kssm_mlx.experiments.detection.no_lock")
    return bench.fresh("mamba")


@sabotage("C7", "C25")
def constant_term(bench: Bench) -> Context:
    """A penalty on the share of one token among the targets, which no parameter changes."""
    return bench.fresh("mamba", loss={"legacy_eos": {"weight": 10.0, "token": 5}})


@sabotage("C28")
def aims_against_each_other(bench: Bench) -> Context:
    """The controller wants R in 0.30-0.55, the target in 0.80-0.95."""
    control, monitor = {"rule": "drift"}, {"target": "notes"}
    return bench.fresh("kssm", model={"controlled": True}, control=control, monitor=monitor)
