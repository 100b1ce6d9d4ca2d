"""Real models, kernels on: the step of a batch shape is traced once, whatever is turned between steps."""

from __future__ import annotations

import math
from collections import Counter

import mlx.core as mx
import pytest

from kssm_mlx.models import build, configure
from kssm_mlx.ops import dispatch, gpu
from kssm_mlx.ops.dialects import native
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step

VOCAB, ROWS, CONTEXT, STEPS = 11, 4, 16, 5
FAMILIES = {"kssm": {"controlled": True}, "mamba": {}}
SCANS = {"kssm": "mobius_scan", "mamba": "selective_scan"}
LAYERS = {"kssm": 2, "mamba": 4}
ONCE, TWICE = [1] * STEPS, [1] + [2] * (STEPS - 1)


@pytest.fixture
def kernels(monkeypatch) -> Counter:
    """How often each kernel became a node of a graph, which under `mx.compile` it does while tracing."""
    if gpu.dialect() is None:
        pytest.skip(f"{mx.default_device()} runs no kernels, so there are none to count: {native.why_not()}")
    assert all(dispatch.is_trusted(op) for op in SCANS.values())  # the proof makes nodes too
    made, call = Counter(), gpu.Kernel.__call__

    def counted(kernel, *args, **options):
        made[kernel.name] += 1
        return call(kernel, *args, **options)

    monkeypatch.setattr(gpu.Kernel, "__call__", counted)
    return made


def run(family: str, turn=lambda state, i: state, rows=lambda i: ROWS, whole=False, **changes):
    """(calls of `forward` up to each step, all metrics of each step); only lr is evaluated, unless `whole`.

    turn(state, i): the state that step i is given. rows(i): its rows. Evaluating more needs g++ for half a
    minute on a cold cache, and traces nothing.
    """
    model = build(configure(family, "xs", vocab_size=VOCAB, context=CONTEXT, overrides=FAMILIES[family]))
    calls, forward = [], model.forward
    model.forward = lambda *args, **options: calls.append(1) or forward(*args, **options)
    train = Train(
        **{"steps": 50, "batch_size": ROWS, "context": CONTEXT, "warmup": 2, "learning_rate": 0.01} | changes
    )
    step, state, counts, found = make_step(model, train), initial_state(model, train), [], []
    for i in range(STEPS):
        key = mx.random.key(i)
        tokens = mx.random.randint(0, VOCAB, (rows(i), CONTEXT + 1), key=key)
        resets = mx.random.uniform(shape=(rows(i), CONTEXT), key=key) < 0.2
        state, metrics = step(turn(state, i), tokens, resets)
        mx.eval((state, metrics) if whole else metrics["lr"])
        counts.append(len(calls))
        found.append(metrics)
    return counts, found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_schedule_moves_on_one_trace(family, kernels):
    counts, found = run(family)
    assert counts == ONCE
    assert len({metrics["lr"].item() for metrics in found}) == 4  # 0.01 twice: warm, and the cosine's top
    last = {"kssm": "backward", "mamba": "states"}[family]
    assert [kernels[f"{SCANS[family]}_{part}"] for part in ("forward", last)] == [LAYERS[family]] * 2


def turned(state, i: int):
    """Knobs and rate at other values in every step."""
    knobs = {name: mx.array(0.5 + 0.1 * i) for name in state.knobs}
    return state._replace(rate=mx.array(0.9**i), knobs=knobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_knobs_and_the_rate_are_turned_on_one_trace(family, kernels):
    states = []
    counts, found = run(family, lambda state, i: states.append(turned(state, i)) or states[-1])
    assert counts == ONCE
    assert len({metrics["lr"].item() for metrics in found}) == STEPS
    knobs = {name.rpartition(".")[2] for name in states[-1].knobs}
    assert knobs == {"kssm": {"k_scale", "sigma"}, "mamba": set()}[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_carry_is_one_more_trace(family, accumulation, kernels):
    """Without a carry, and with one; the pieces of a batch share a trace."""
    counts, _ = run(family, hand_off=True, accumulation=accumulation)
    assert counts == TWICE


# --- that it is seen --------------------------------------------------------------------------------------


def test_a_number_that_changes_is_a_trace_each_step(kernels):
    """A rate that is a number of Python's is a constant of the graph."""
    counts, _ = run("kssm", lambda state, i: state._replace(rate=0.9**i))
    assert counts == [1, 2, 3, 4, 5]


def test_a_new_shape_is_one_more_trace(kernels):
    counts, _ = run("mamba", rows=lambda i: 2 if i in (2, 4) else ROWS)
    assert counts == [1, 1, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_evaluated_it_trains_on_one_trace(family, kernels):
    counts, found = run(family, turned, whole=True)
    assert counts == ONCE
    assert len({metrics["loss"].item() for metrics in found}) == STEPS
    assert all(math.isfinite(x.item()) and not m["skipped"].item() for m in found for x in m.values())
