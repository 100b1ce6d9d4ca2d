import hashlib
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import REGISTRY
from kssm_mlx.checks.pretrained import behaviour
from kssm_mlx.checks.pretrained.arithmetic import KNOWN, fingerprint_of, judge_vocabulary
from kssm_mlx.checks.pretrained.subject import Subject, read_english
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.weights.audit.manifest_tables import Fingerprint, ModelFacts, Published
from tests.support.counted import Counted, Forgetful, Stuck
from tests.support.fakes import TinyRecurrent

TEXT_SHA256 = "428397e2dd5bd564ec45ad243f04947e1834e1d1fb5516b0759d3493cc7b889d"
SOUND = Counted(read_english())
FACTS = ModelFacts(model_type="mamba", vocab_size=256, hidden_size=8, num_hidden_layers=2)
ASKED = ("W28", "W20", "W21", "W22", "W23", "W24", "W25", "W26", "W27")  # in this order


def subject(model=SOUND, **known):
    return Subject(model=model, tokenizer=ByteTokenizer(), **known)


def verdict_of(id, given):
    return suite.run_check(REGISTRY[id], given)


def examine(given):
    return [*suite.run_level("L4", given), *suite.run_level("L5", given)]


def scaled(model, factor):
    """The same model with its table multiplied."""
    other = Counted(read_english())
    other.table = model.table * factor
    return other


def test_the_text_is_plain_english_of_4000_tokens_or_more():
    text = read_english()
    assert hashlib.sha256(text.encode()).hexdigest() == TEXT_SHA256
    assert text.isascii() and len(text.split()) > 4000
    assert not any(line.lstrip().startswith(("-", "*", "1.")) for line in text.splitlines())


def test_a_sound_base_model_passes_every_check():
    known = {
        "fingerprint": fingerprint_of(SOUND),
        "behaviour": behaviour.measure_behaviour(subject()),
        "facts": FACTS,
    }
    checks = {c.id: c for c in examine(subject(**known))}
    assert tuple(checks) == ASKED
    greedy = checks.pop("W27")  # counts do loop when nothing is drawn
    assert {c.verdict for c in checks.values()} == {"pass"}
    assert greedy.verdict in ("pass", "warn") and greedy.ok
    assert all(c.title and c.level in ("L4", "L5") for c in checks.values())


def test_what_is_absent_is_said():
    checks = {c.id: c for c in examine(Subject(model=SOUND))}
    assert checks["W20"].got.startswith("no tokenizer; put the tokenizer.json")
    assert checks["W24"].verdict == checks["W27"].verdict == "not measurable"
    assert "--write-manifest adds one" in checks["W21"].got
    published = verdict_of("W25", subject(published=Published(pile_perplexity=10.56, source="X 2023")))
    assert published.verdict == "not measurable" and "pile perplexity 10.56 (X 2023)" in published.got


class Sized:
    """A tokenizer of which only the size matters here."""

    def __init__(self, vocab_size):
        self.vocab_size, self.name = vocab_size, "hf:somewhere"

    def encode(self, text):
        return np.array(list(text))

    def decode(self, ids):
        return "".join(ids)


@pytest.mark.parametrize(
    "ids, rows",
    [(50_277, 50_280), (50_277, 50_288), (50_277, 50_277), (65_530, 65_536), (256, 256), (50_277, 50_304)],
)
def test_a_vocabulary_that_fits(ids, rows):
    check = judge_vocabulary(Sized(ids), rows)
    assert check.verdict == "pass" and check.fix == ""


@pytest.mark.parametrize(
    "ids, rows, cause",
    [
        (50_257, 50_280, "this embedding fits GPT-NeoX-20B"),
        (50_257, 50_277, "this embedding fits GPT-NeoX-20B"),
        (100_277, 50_280, "this embedding fits GPT-NeoX-20B"),
        (50_277, 65_536, "this embedding fits RWKV World"),
        (65_530, 50_277, "this embedding fits GPT-NeoX-20B"),
        (50_277, 256, "this embedding fits bytes"),
        (256, 50_280, "this embedding fits GPT-NeoX-20B"),
        (60_000, 59_999, "use the tokenizer the model was trained with"),
    ],
)
def test_a_vocabulary_that_does_not_fit_fails_with_its_cause(ids, rows, cause):
    check = judge_vocabulary(Sized(ids), rows)
    assert check.verdict == "fail" and cause in check.fix
    assert f"{ids:,} ids ({KNOWN.get(ids, 'hf:somewhere')}) for {rows:,} rows" == check.got


def test_every_pair_of_known_tokenizers_is_told_apart():
    for rows in (50_257, 50_280, 65_536, 65_024, 32_000, 100_277, 128_256, 256):
        assert sum(judge_vocabulary(Sized(ids), rows).ok for ids in KNOWN) == 1


def test_unused_rows_of_an_unknown_kind_only_warn():
    assert judge_vocabulary(Sized(1_000), 1_700).verdict == "warn"


def test_a_tokenizer_that_loses_text_fails():
    lossy = Sized(300)
    lossy.decode = lambda ids: "".join(ids).lower()
    check = judge_vocabulary(lossy, 300)
    assert check.verdict == "fail" and "does not survive" in check.got
    assert judge_vocabulary(CharTokenizer("ab"), 2).ok  # which refuses what it cannot write, aloud


def test_the_fingerprint_knows_its_model():
    kept = fingerprint_of(SOUND)
    assert np.array(kept.logits).shape == (8, 16)
    for other in (scaled(SOUND, 1.05), Counted(read_english()[:9000])):
        check = verdict_of("W21", subject(other, fingerprint=kept))
        assert check.verdict == "fail" and "not the weights of the manifest" in check.fix
    half = scaled(SOUND, 1)
    half.table = half.table.astype(mx.bfloat16)
    assert verdict_of("W21", subject(half, fingerprint=kept)).verdict == "pass"
    foreign = Fingerprint(vocab_size=50_280, logits=kept.logits)
    assert verdict_of("W21", subject(fingerprint=foreign)).verdict == "fail"


def test_other_sizes_than_the_manifest_says_fail():
    deeper = FACTS.model_copy(update={"num_hidden_layers": 4})
    check = verdict_of("W28", subject(facts=deeper))
    assert (check.verdict, check.got, check.expected) == (
        "fail",
        "num_hidden_layers 2",
        "num_hidden_layers 4",
    )
    assert verdict_of("W28", subject(facts=FACTS)).verdict == "pass"


def test_a_base_model_that_ignores_its_state_fails():
    check = verdict_of("W22", subject(Forgetful(read_english())))
    assert check.verdict == "fail" and "carried state" in check.fix and check.title == REGISTRY["W22"].title


@pytest.mark.parametrize(
    "value, got, fix",
    [
        (float("nan"), "not finite in float32 and bfloat16", "a weight is damaged"),
        (3.4e38, "not finite in bfloat16", "run it in float32"),
    ],
)
def test_a_weight_that_is_not_finite_fails(value, got, fix):
    broken = scaled(SOUND, 1)
    broken.table[:, 7] = value
    check = verdict_of("W23", subject(broken))
    assert (check.verdict, check.got) == ("fail", got) and fix in check.fix


@pytest.mark.parametrize("kind", ["fresh", "unigram", "shuffled"])
def test_a_base_model_no_better_than_counting_fails(kind):
    model = {
        "fresh": lambda: TinyRecurrent(vocab_size=256),
        "unigram": lambda: Counted(read_english(), order=1),
        "shuffled": lambda: Counted(read_english()[::-1]),
    }[kind]()
    check = behaviour.better_than_counting(subject(model))
    assert check.verdict == "fail" and "wrong tokenizer" in check.fix
    assert ("it knows nothing" in check.got) == (kind != "unigram")


def test_counting_is_fair():
    """Counts of the text itself would know what they are asked."""
    ids = np.frombuffer(read_english().encode(), np.uint8).astype(np.int64)
    rungs = behaviour.count_ngrams(ids, 8193, 256)
    in_sample = Counted(read_english(), order=2)
    nats = subject(in_sample).evaluation["nats_per_token"]
    assert nats < rungs["bigram"] < rungs["unigram"] < np.log(256)


def test_the_figure_of_another_model_fails():
    kept = behaviour.measure_behaviour(subject())
    poorer = Counted(read_english()[len(read_english()) // 2 :])
    check = behaviour.manifest_figure(subject(poorer, behaviour=kept))
    assert check.verdict == "fail" and "W11, W16, W21" in check.fix
    assert behaviour.manifest_figure(subject(behaviour=kept)).verdict == "pass"
    nearly = kept.model_copy(update={"nats_per_token": kept.nats_per_token * 1.04})
    beyond = kept.model_copy(update={"nats_per_token": kept.nats_per_token * 1.06})
    assert (
        behaviour.manifest_figure(subject(behaviour=nearly)).ok
        and not behaviour.manifest_figure(subject(behaviour=beyond)).ok
    )


def test_a_figure_is_for_one_text_and_one_tokenizer():
    kept = behaviour.measure_behaviour(subject())
    assert "is of another text" in verdict_of("W25", subject(behaviour=kept, text=read_english()[:9000])).got
    renamed = kept.model_copy(update={"tokenizer_digest": "0" * 64})
    check = verdict_of("W25", subject(behaviour=renamed))
    assert check.verdict == "fail" and "tokenizer files of the same revision" in check.fix


def test_a_base_model_that_knows_pairs_only_gains_nothing_from_context():
    check = verdict_of("W26", subject(Counted(read_english(), order=2)))
    assert check.verdict == "fail" and check.got.startswith("0.000")


def test_a_base_model_that_repeats_itself_fails():
    check = verdict_of("W27", subject(Stuck(read_english())))
    assert check.verdict == "fail" and "top share 1" in check.got


def test_another_domain_is_judged_on_its_own_text():
    code = "for i in range(10):\n    total = total + weights[i] * inputs[i]\n" * 60
    coder = Counted(code)
    english_only = verdict_of("W24", subject(coder, domain="code"))
    assert english_only.verdict == "not measurable"
    assert "declares the domain 'code'; give --text FILE" in english_only.got
    assert "nats/token)" in english_only.got
    assert behaviour.better_than_counting(subject(coder)).verdict == "fail"
    assert behaviour.better_than_counting(subject(SOUND, text=read_english()[5000:15000], domain="prose")).ok


def test_a_text_that_cannot_be_read_is_said():
    short = verdict_of("W24", subject(text="too short"))
    assert short.got == "the text has 9 tokens, at least 64 are needed"
    chars = Subject(model=SimpleNamespace(args=SimpleNamespace(vocab_size=3)), tokenizer=CharTokenizer("abc"))
    assert "or give --text FILE" in verdict_of("W24", chars).got
    small = replace(subject(), model=SimpleNamespace(args=SimpleNamespace(vocab_size=50)))
    assert "ids beyond the embedding (W20)" in verdict_of("W24", small).got


def test_a_model_that_does_not_run_fails_by_name():
    class Broken(Counted):
        def forward(self, *_, **__):
            raise ValueError("shapes do not match\nand more")

    check = verdict_of("W23", subject(Broken(read_english())))
    assert (check.verdict, check.got) == ("fail", "ValueError: shapes do not match")


def test_every_check_of_its_own_says_what_would_fail_it():
    for id in ASKED:
        assert all(part in REGISTRY[id].run.__doc__ for part in ("Threshold:", "Caught:", "Sabotage:"))
