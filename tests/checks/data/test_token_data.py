"""C13, C14, C15 and C29: foreign tokenizers, damaged files, leaking splits and texts without order."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kssm_mlx.checks import suite
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.data.token_data import kl_limit, measure_overlap
from kssm_mlx.data.passages import hash_passages
from kssm_mlx.data.preparation.prepare import prepare
from kssm_mlx.data.tokenizers.plain import CharTokenizer
from kssm_mlx.data.tokens import TokenData
from kssm_mlx.digest import file_digest
from kssm_mlx.training.recipe_sections import Data
from tests.support import fakes
from tests.support.small_runs import make_data, sentences

DATA_CHECKS = ("C13", "C14", "C15", "C29")


@pytest.fixture
def context(prepared):
    data, recipe = prepared
    return Context(fakes.TinyRecurrent(data.vocab_size), None, recipe, data, data.tokenizer)


def run(id, context, **changes):
    (check,) = suite.run_suite(replace(context, **changes), [id])
    return check


def with_ids(context, train=None, validation=None, vocab_size=None):
    """The same data with other ids, as checks read them."""
    data, side = context.data, lambda ids, old: old if ids is None else SimpleNamespace(ids=ids)
    return SimpleNamespace(
        train=side(train, data.train),
        validation=side(validation, data.validation),
        vocab_size=vocab_size or data.vocab_size,
        index=data.index,
    )


def copied(context, tmp_path):
    """A copy of the token files that a test may damage."""
    shutil.copytree(context.data.folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("seed", range(5))
def test_sound_text_passes(tmp_path, seed):
    """Five texts. Nothing is drawn in C13, C14 and C15, which read what is there; C29 draws a permutation."""
    data, recipe = make_data(tmp_path, sentences(4000, seed))
    model = fakes.TinyRecurrent(data.vocab_size)
    checks = suite.run_suite(Context(model, None, recipe, data, data.tokenizer, seed=seed), DATA_CHECKS)
    assert [(c.id, c.got) for c in checks if c.verdict != "pass"] == []


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "chars-reserved"])
def test_the_default_corpus_passes(tmp_path, tokenizer):
    data = prepare(Data(tokenizer=tokenizer), tmp_path)
    checks = suite.run_suite(Context(data=data, tokenizer=data.tokenizer), DATA_CHECKS)
    assert [(c.id, c.got) for c in checks if c.verdict != "pass"] == []


def test_a_tokenizer_of_another_text_is_caught(context):
    characters = "".join(map(chr, range(0x100, 0x100 + context.data.vocab_size)))
    check = run("C13", context, tokenizer=CharTokenizer(characters))
    assert check.verdict == "fail" and check.got.startswith("digests of tokenizer, data and index")


def test_a_model_with_a_row_too_many_is_caught(context):
    V = context.data.vocab_size
    check = run("C13", context, model=fakes.TinyRecurrent(V + 1))
    assert check.verdict == "fail"
    assert check.got == f"vocabulary of model {V + 1}, tokenizer {V}, data {V}"


def test_a_tokenizer_that_does_not_round_trip_is_caught(context):
    class Upper(CharTokenizer):
        def encode(self, text):
            return super().encode(text.replace("a", "b"))

    check = run("C13", context, tokenizer=Upper(context.tokenizer.characters))
    assert check.verdict == "fail" and check.got == "decode(encode(text)) is not the text"


def test_undecodable_text_is_caught(context):
    class Junk(CharTokenizer):
        def decode(self, ids):
            return super().decode(ids).replace("z", "\ufffd").replace("v", "\ufffd")

        def encode(self, text):
            return super().encode(text.replace("\ufffd", "v"))

    check = run("C13", context, tokenizer=Junk(context.tokenizer.characters))
    assert check.verdict == "fail" and check.got.endswith("of the text is U+FFFD")


def test_a_npy_header_is_caught(context, tmp_path):
    folder = copied(context, tmp_path)
    with open(folder / "train.bin", "wb") as f:
        np.save(f, np.asarray(context.data.train.ids))
    check = run("C14", context, data=SimpleNamespace(folder=folder, vocab_size=context.data.vocab_size))
    assert check.verdict == "fail" and "is a .npy file" in check.got


@pytest.mark.parametrize(
    "rehash, message", [(False, "the file changed after it was written"), (True, "expected 0 to")]
)
def test_an_id_out_of_range_is_caught(context, tmp_path, rehash, message):
    folder, V = copied(context, tmp_path), context.data.vocab_size
    ids = np.fromfile(folder / "validation.bin", "<u2")
    ids[17] = V
    ids.tofile(folder / "validation.bin")
    if rehash:
        index = json.loads((folder / "index.json").read_text())
        index["files"]["validation.bin"]["sha256"] = file_digest(folder / "validation.bin")
        (folder / "index.json").write_text(json.dumps(index))
    check = run("C14", context, data=SimpleNamespace(folder=folder, vocab_size=V))
    assert check.verdict == "fail" and message in check.got


def test_one_flipped_bit_is_caught(context, tmp_path):
    folder = copied(context, tmp_path)
    raw = bytearray((folder / "train.bin").read_bytes())
    raw[1000] ^= 1
    (folder / "train.bin").write_bytes(raw)
    check = run("C14", context, data=TokenData.open(folder))
    assert check.verdict == "fail" and "train.bin has sha256" in check.got


def test_a_short_file_is_caught(context, tmp_path):
    folder = copied(context, tmp_path)
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    check = run("C14", context, data=SimpleNamespace(folder=folder, vocab_size=context.data.vocab_size))
    assert check.verdict == "fail" and "bytes; expected" in check.got


def test_ids_beyond_the_embedding_are_caught(context):
    check = run("C14", context, model=fakes.TinyRecurrent(10))
    assert check.verdict == "fail" and check.got.endswith("for a model of 10 rows")


def test_validation_inside_training_is_caught(context):
    train = np.asarray(context.data.train.ids)
    check = run("C15", context, data=with_ids(context, validation=train[500:9500]))
    assert check.verdict == "fail" and check.got.startswith("overlap 100.000%")


def test_the_advice_is_of_the_cause_and_names_the_way_on(context):
    """What a newcomer was told of one file was to split it by document."""
    train = np.asarray(context.data.train.ids)
    shared = run("C15", context, data=with_ids(context, validation=train[500:9500])).fix
    passage = context.data.tokenizer.decode(train[500:520])
    assert passage in shared and "data.deduplicate = true" in shared and "of another kind" not in shared
    other = run("C15", context, data=with_ids(context, validation=np.arange(5000) % 3)).fix
    assert "of another kind" in other and "deduplicate" not in other and "in an empty folder" not in other
    assert all("""or --waive C15="why this is meant\"""" in fix for fix in (shared, other))


def test_a_little_overlap_is_measured(context):
    """100 copied tokens are 37 shared passages of 64, of 4,937 in all."""
    rng = np.random.default_rng(0)
    train, validation = rng.integers(0, 256, 50000), rng.integers(0, 256, 5000)
    assert measure_overlap(train, validation) == 0
    validation[2000:2100] = train[-100:]
    assert measure_overlap(train, validation) == pytest.approx(37 / 4937)
    check = run("C15", context, data=with_ids(context, train, validation, 256))
    assert check.verdict == "fail" and check.got.startswith("overlap 0.749%")


def test_another_domain_is_caught(context):
    digits = np.random.default_rng(0).integers(0, 3, 5000)
    check = run("C15", context, data=with_ids(context, validation=digits))
    assert check.verdict == "fail" and check.numbers["kl"] > 1


def test_verse_is_not_validation_for_a_manual(context, shared_text, tmp_path):
    """TinyShakespeare against pydoc, in bytes: a KL of 0.27, which the limit for 50,257 tokens lets pass."""
    manual = prepare(Data(), tmp_path)
    verse = np.frombuffer(shared_text.read_bytes()[-100_000:], np.uint8)
    check = run("C15", context, recipe=None, data=with_ids(context, manual.train.ids, verse, 256))
    assert check.verdict == "fail" and check.expected == "overlap < 0.1 %, KL < 0.26 nats, one corpus"


def test_another_corpus_is_caught(context, tmp_path):
    _, other = make_data(tmp_path, sentences(100, 1))
    check = run("C15", context, recipe=other)
    assert check.verdict == "fail" and ", recipe of file:" in check.got
    gone = other.model_copy(update={"data": Data(source="file:gone.txt")})
    assert run("C15", context, recipe=gone).verdict == "fail"


def test_the_same_corpus_may_have_moved(context, tmp_path):
    _, moved = make_data(tmp_path, sentences(4000, 0))
    assert moved.data.source != context.recipe.data.source
    assert run("C15", context, recipe=moved).verdict == "pass"


def test_the_limit_of_the_kl_is_the_published_one_at_its_vocabulary():
    assert kl_limit(50257) == kl_limit(100277) == 0.5
    assert kl_limit(256) == pytest.approx(0.256, abs=1e-3)


def test_passages_are_equal_exactly_where_the_tokens_are():
    ids = np.tile(np.arange(100), 2)
    hashes = hash_passages(ids, 64)
    assert hashes.shape == (137,)
    assert (hashes[:37] == hashes[100:]).all()
    assert len(np.unique(hashes)) == 100


@pytest.mark.parametrize("seed", range(5))
def test_uniform_random_tokens_are_refused(context, seed):
    rng = np.random.default_rng(seed)
    noise = with_ids(context, rng.integers(0, 64, 50000), rng.integers(0, 64, 5000), 64)
    check = run("C29", context, data=noise, seed=seed)
    assert check.verdict == "fail" and check.numbers["gain"] == 0
    assert check.got.startswith("order gain 0.000 (uniform 4.159, permuted 4.159), evidence 0 nats")


@pytest.mark.parametrize("seed", range(5))
def test_permuted_text_is_refused(context, seed):
    rng = np.random.default_rng(seed)
    shuffled = with_ids(
        context, rng.permutation(context.data.train.ids), rng.permutation(context.data.validation.ids)
    )
    check = run("C29", context, data=shuffled, seed=seed)
    assert check.verdict == "fail" and abs(check.numbers["gain"]) < 1e-3
    assert "0.000 (unigram 2.872, permuted 2.872)" in check.got


def test_one_token_repeated_is_refused(context):
    constant = with_ids(context, np.full(9000, 3), np.full(900, 3))
    check = run("C29", context, data=constant)
    assert check.verdict == "fail" and "entropy 0.00 ln V" in check.got


def interleaved(rng, count, length, V, fixed=True):
    """Two streams in alternation, each a repeated random pattern of 2 to 7 tokens, or (broken) noise."""
    rows = rng.integers(0, V, (count, length))
    for row in rows if fixed else ():
        for parity in (0, 1):
            pattern = rng.integers(0, V, rng.integers(2, 8))
            row[parity::2] = np.resize(pattern, row[parity::2].size)
    return rows.reshape(-1)


@pytest.mark.parametrize("fixed, verdict, seed", [*((True, "pass", s) for s in range(5)), (False, "fail", 0)])
def test_the_interleaved_task_passes_and_its_broken_form_does_not(context, fixed, verdict, seed):
    """A rule inside each sequence only: no n-gram of the corpus sees it, the in-context coders do."""
    rng, L = np.random.default_rng(seed), context.recipe.train.context
    train, validation = (interleaved(rng, n, L, 512, fixed) for n in (600, 300))
    check = run("C29", context, data=with_ids(context, train, validation, 512))
    assert check.verdict == verdict
    assert not fixed or "in-context order 1 stride 2" in check.got
