"""May the numbers of these runs stand beside each other? Units, terms, sizes."""

from __future__ import annotations

from kssm_mlx.checks.core.model_size import count_parameters
from kssm_mlx.checks.core.probes import as_run
from kssm_mlx.checks.core.registry import Check, Context, NotMeasurable, check, require_value, verdict
from kssm_mlx.data.batches import evaluation_windows
from kssm_mlx.digest import root_digest
from kssm_mlx.errors import ConfigError
from kssm_mlx.metrics.language import BitsPerByte, Nats
from kssm_mlx.training.evaluation import window_losses

SAME_TOKENS, SAME_SIZE, SAME_LOSS = 0.01, 0.1, 1e-3


@check(
    "C34",
    level="G",
    title="the numbers compare",
    source="docs/background/k-ssm.md#a-loss-with-a-regulariser-in-it, "
    "docs/background/hybrids.md#comparable-losses",
)
def fair_comparison(ctx: Context) -> Check:
    """Of all runs of a claim: the loss of the last evaluation as a value that knows its tokenizer and its
    text (metrics/language.py), compared with that of the first run; the same loss against the cross-entropy
    of the weights, measured now on the same windows; parameters, and tokens trained on.

    Threshold: the units are one, or conversion to bits/byte makes them one. Logged and measured loss within
    1e-3: a regulariser in it is not cross-entropy. Warns above 10 % in parameters or 1 % in tokens: then the
    claim is about size or length as well.
    Caught: "24.7 % worse loss" of the monostable control, which was the regulariser; nats/char of v1 beside
    nats/token of v3.
    Sabotage: runs of two tokenizers; of two texts; a loss with a regulariser in it; twice the tokens.
    """
    runs = [*require_value(ctx.runs, "runs"), *(ctx.baseline or ())]
    if len(runs) < 2:
        raise NotMeasurable("one run compares with nothing")
    unit, problems = _common_unit(runs)
    problems += _find_impure_losses(runs)
    sizes, tokens = [count_parameters(run.model) for run in runs], [_tokens(run) for run in runs]
    unequal = [f"{min(sizes):,} to {max(sizes):,} parameters"] if not _are_alike(sizes, SAME_SIZE) else []
    unequal += [f"{min(tokens):,} to {max(tokens):,} tokens"] if not _are_alike(tokens, SAME_TOKENS) else []
    return verdict(
        "C34",
        "fail" if problems else "warn" if unequal else "pass",
        "; ".join([*problems, *unequal]) or f"{len(runs)} runs in {unit}, equal in size and tokens",
        "one unit, cross-entropy alone, equal parameters and tokens",
        "evaluate all of them on one text, in bits/byte where the tokenizers differ, and leave terms out",
        unit=unit,
        parameters=sizes,
        tokens=tokens,
    )


def _loss(run: Context) -> Nats:
    """The last evaluation, as a value that knows the tokenizer and the text it is about."""
    index = run.data.index
    text = root_digest({"corpus": index["corpus"]["digest"], "split": str(index["split"])})
    return Nats(_evaluation(run)["nats_per_token"], tokenizer=index["tokenizer"]["digest"], text=text)


def _evaluation(run: Context) -> dict:
    found = [row for row in run.history or () if row.get("kind") == "eval"]
    if not found:
        raise NotMeasurable(f"{_name(run)} has no evaluation")
    if not isinstance(found[-1].get("nats_per_token"), int | float):
        raise NotMeasurable(f"the last evaluation of {_name(run)} has no number for a loss: the run diverged")
    return found[-1]


def _common_unit(runs: list[Context]) -> tuple[str, list[str]]:
    """The unit in which all compare with the first, and why there is none."""
    losses = [_loss(run) for run in runs]
    for unit, values in (
        ("nats/token", losses),
        ("bits/byte", [_in_bits(x, r) for x, r in zip(losses, runs)]),
    ):
        try:
            [value - values[0] for value in values]
        except ConfigError as e:
            problem = str(e)
        else:
            return unit, []
    return "none", [problem]


def _in_bits(loss: Nats, run: Context) -> BitsPerByte:
    return loss.to_bits_per_byte(run.data.bytes_per_target(_evaluation(run)["tokens"]))


def _find_impure_losses(runs: list[Context]) -> list[str]:
    """Of runs whose logged loss is not the cross-entropy of their weights, both numbers."""
    current = [run for run in runs if _evaluation(run)["step"] == run.step]  # of the weights that there are
    pairs = [(_name(run), _evaluation(run)["nats_per_token"], _measure_loss(run)) for run in current]
    return [
        f"{name} logs {logged:.4f} nats/token, its cross-entropy is {now:.4f}"
        for name, logged, now in pairs
        if not abs(logged - now) <= SAME_LOSS
    ]


def _name(run: Context) -> str:
    return run.run_folder.name


def _measure_loss(run: Context) -> float:
    """The cross-entropy of a run's weights on the windows that its evaluations score, nats/token."""
    train = run.recipe.train
    windows = evaluation_windows(run.data.validation, run.recipe.eval.tokens, train.context, train.batch_size)
    return float(window_losses(as_run(run), windows, compile=False).mean())


def _tokens(run: Context) -> int:
    """How many targets a run was trained on."""
    return sum(row["tokens"] for row in run.history or () if row.get("kind") == "train")


def _are_alike(values: list[int], share: float) -> bool:
    return max(values) - min(values) <= share * max(values)
