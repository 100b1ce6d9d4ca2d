"""What is traced while a text is written, and what is held meanwhile."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation import generate
from kssm_mlx.generation.trace import list_observed, list_quantities, require_quantities, trace_rows
from kssm_mlx.models import build
from kssm_mlx.models.base import Clamp, Intervention
from tests.support.fakes import TinyRecurrent
from tests.support.small_kssm import config

pytestmark = pytest.mark.usefixtures("uncompiled")
TOKENIZER = ByteTokenizer()
OBSERVED = ("R", "psi", "U")


@pytest.fixture(scope="module")
def model():
    return build(config(vocab_size=256), 0)


def write(model, *prompts, **options):
    given = {"max_tokens": 6, "stop_at_separator": False, "temperature": 1.0, **options}
    return generate(model, TOKENIZER, list(prompts or ["once"]), **given)


def test_what_is_observed_is_what_one_pass_over_the_text_has(model):
    (done,) = write(model, observe=OBSERVED)
    ids = [*b"once", *done.ids[:-1]]
    out = model.forward(mx.array([ids]))
    for name in ("block00/R", "block01/psi"):
        seen = np.stack([observed[name] for observed in done.observed])
        np.testing.assert_allclose(seen, np.array(out.trace[name])[0, 3:], atol=1e-5)
    p = np.array(mx.softmax(out.logits[0, 3:], axis=-1), dtype=np.float64)
    entropy = -(p * np.log(p)).sum(axis=-1) / np.log(256)
    np.testing.assert_allclose([observed["U"] for observed in done.observed], entropy, atol=1e-5)


def test_looking_changes_no_token_and_rows_are_those_of_the_text(model):
    blind, seen = write(model, "a", "once"), write(model, "a", "once", observe=OBSERVED)
    assert [c.ids for c in blind] == [c.ids for c in seen] and not blind[0].observed
    for row, done in enumerate(seen):
        rows = list(trace_rows(done, TOKENIZER, row))
        assert [r["id"] for r in rows] == list(done.ids) and {r["row"] for r in rows} == {row}
        assert "".join(r["text"] for r in rows) == done.text
        assert rows[0]["R"]["mean"] == pytest.approx(np.mean(rows[0]["R"]["blocks"]))
        assert "units" not in rows[0]["R"] and 0 < rows[0]["U"] <= 1


def test_a_text_that_ends_early_has_no_row_too_many(model):
    (long,) = write(model, observe=("U",))
    (short,) = write(model, observe=("U",), stop=[long.text[:2]])
    assert short.finished == "stop" and 0 < len(short.ids) < len(long.ids)
    assert len(short.observed) == len(short.ids)


def test_angles_are_averaged_on_the_circle(model):
    (done,) = write(model, observe=("psi",), max_tokens=1)
    values = {"block00/psi": np.array([np.pi - 0.1, -np.pi + 0.1], np.float32)}
    (row,) = trace_rows(type(done)(**{**vars(done), "observed": (values,)}), TOKENIZER, units=True)
    assert abs(row["psi"]["mean"]) == pytest.approx(np.pi, abs=1e-5)
    assert np.shape(row["psi"]["units"]) == (1, 2)


def test_omega_is_how_far_the_phase_has_moved(model):
    assert list_observed(("omega", "U", "psi")) == ("psi", "U")
    (done,) = write(model, observe=("psi",))
    angles = [3.0, -3.0, -2.5, 2.5]
    seen = tuple({"block00/psi": np.array([a, 0.0], np.float32)} for a in angles)
    done = type(done)(**{**vars(done), "ids": done.ids[:4], "logprobs": done.logprobs[:4], "observed": seen})
    rows = list(trace_rows(done, TOKENIZER, names=("omega",), units=True))
    assert "psi" not in rows[0] and rows[0]["omega"] == {
        "mean": None,
        "blocks": [None],
        "units": [[None, None]],
    }
    moved = [row["omega"]["units"][0][0] for row in rows[1:]]
    np.testing.assert_allclose(moved, [2 * np.pi - 6, 0.5, 5 - 2 * np.pi], atol=1e-6)
    assert rows[2]["omega"]["mean"] == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("where", ["readout", "state"])
def test_a_hold_is_exact_at_every_token_and_changes_what_is_said(model, where):
    hold = Intervention((Clamp("R", 0.25, where=where),))
    (free,), (held,) = write(model, observe=("R",)), write(model, observe=("R",), intervention=hold)
    for observed in held.observed:
        np.testing.assert_allclose(observed["block00/R"], 0.25, atol=1e-5)
    assert held.logprobs != free.logprobs
    # What is carried moves away from the free text's only where the state itself is held.
    first = write(model, max_tokens=1)[0].state.cache
    held_first = write(model, max_tokens=1, intervention=hold)[0].state.cache
    # [0] is the block whose input is the same.
    same = all(mx.allclose(a, b, atol=1e-6).item() for a, b in zip(first[0], held_first[0], strict=True))
    assert same == (where == "readout")


def test_the_prompt_is_read_without_the_hold(model):
    """All but its last token, which the pass reads that draws the first one."""
    hold = Intervention((Clamp("R", 0.9, where="state"),))
    (done,) = write(model, "once", intervention=hold, max_tokens=1)
    before, last = mx.array([list(b"onc")]), mx.array([list(b"e")])
    free = model.forward(last, model.forward(before).cache, hold).logits
    throughout = model.forward(last, model.forward(before, None, hold).cache, hold).logits
    expected, other = (nn.log_softmax(x[0, -1])[done.ids[0]].item() for x in (free, throughout))
    assert done.logprobs[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - other) > 1e-3


def test_what_a_model_does_not_have_is_refused(model):
    assert list_quantities(model) == ["R", "psi", "h", "dt", "lyapunov", "omega", "U"]
    assert list_quantities(TinyRecurrent(256)) == ["U"]
    with pytest.raises(ConfigError, match="no 'state' to trace; it has R, psi"):
        require_quantities(model, ["R", "state"])
    with pytest.raises(ConfigError, match="no quantity to trace"):
        require_quantities(model, [])
