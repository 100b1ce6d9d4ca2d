import math

import numpy as np
import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.metrics.language import BitsPerByte, Nats, summarize_losses


def test_one_bit_per_byte_is_ln_2_nats_per_byte():
    assert Nats(math.log(2)).to_bits_per_byte(1.0) == BitsPerByte(1.0)
    assert Nats(3.0).to_bits_per_byte(4.0).value == pytest.approx(3 / (4 * math.log(2)))
    assert Nats(1.5, "char").to_bits_per_byte(1.0) == Nats(1.5).to_bits_per_byte(1.0)


def test_losses_of_one_unit_compare_and_subtract():
    assert Nats(1.0) < Nats(2.0) and Nats(2.0) >= Nats(2.0) and BitsPerByte(2.0) > BitsPerByte(1.0)
    assert Nats(2.5, "char") - Nats(2.0, "char") == 0.5
    assert str(Nats(1.23456, "char")) == "1.2346 nats/char" and str(BitsPerByte(2)) == "2.0000 bits/byte"


@pytest.mark.parametrize("other", [Nats(1.0, "char"), BitsPerByte(1.0), 1.0])
def test_other_units_never_meet(other):
    for meet in (lambda a, b: a < b, lambda a, b: a - b, lambda a, b: a >= b):
        with pytest.raises(
            ConfigError, match=r"cannot compare 2\.0000 nats/token with 1\.0.*the units differ"
        ):
            meet(Nats(2.0), other)
    assert Nats(1.0) != other


def test_values_that_know_their_origin_meet_their_like_only():
    ours, theirs = (Nats(2.0, tokenizer=t, text="shakespeare") for t in ("a1", "b2"))
    with pytest.raises(ConfigError, match="tokens of two tokenizers; convert both with to_bits_per_byte"):
        ours - theirs
    assert ours.to_bits_per_byte(4.0) - theirs.to_bits_per_byte(2.0) < 0
    with pytest.raises(ConfigError, match="of two texts; evaluate both on one"):
        ours - Nats(1.0, tokenizer="a1", text="pydoc")
    with pytest.raises(ConfigError, match="of two texts"):
        ours.to_bits_per_byte(4.0) - BitsPerByte(1.0, text="pydoc")


@pytest.mark.parametrize("bytes_per_token", [0.0, -1.0, math.nan])
def test_bytes_per_token_must_be_positive(bytes_per_token):
    with pytest.raises(ConfigError, match="expected a positive number"):
        Nats(1.0).to_bits_per_byte(bytes_per_token)


def test_perplexity_is_always_a_finite_number():
    assert Nats(math.log(65)).perplexity == pytest.approx(65)
    assert 1e300 < Nats(1000.0).perplexity < math.inf


def test_the_standard_error_covers_the_truth_as_often_as_it_should():
    rng = np.random.default_rng(0)
    samples = rng.normal(2.0, 0.3, (2000, 50))
    inside = [
        abs(e.perplexity - math.exp(2.0)) < 1.96 * e.perplexity_se for e in map(summarize_losses, samples)
    ]
    assert 0.92 < np.mean(inside) < 0.97
    assert summarize_losses(samples[0]).windows == 50


def test_one_window_has_no_standard_error_and_none_is_refused():
    assert math.isnan(summarize_losses(np.array([2.0])).loss_se)
    with pytest.raises(ConfigError, match="no window to evaluate"):
        summarize_losses(np.array([]))
