from importlib.resources import files
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.rwkv_world import VOCABULARY, WorldTokenizer
from kssm_mlx.data.tokenizers.streaming import StreamDecoder
from kssm_mlx.errors import ConfigError, DataError

UNICODE = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
# Words that are beginnings of each other, a token of half a character, a literal with spaces and quotes.
WORDS = ["the", "then", " the", "  ", "phase", "phases lock", "é", "\n\n", "it's a 'b'", '"']
PIECES = [b"\xe2\x82", "€".encode(), "中".encode()]


def lines(words=WORDS, pieces=PIECES):
    """The lines of a vocabulary as in the published file: bytes first, text as str, the rest as bytes."""
    tokens = [*(bytes([b]) for b in range(256)), *(w.encode() for w in words), *pieces]
    literals = [repr(t.decode()) if is_text(t) else repr(t) for t in dict.fromkeys(tokens)]
    return [f"{i} {x} {len(t)}" for i, (x, t) in enumerate(zip(literals, dict.fromkeys(tokens)), 1)]


def is_text(token):
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / VOCABULARY
    path.write_text("\n".join(lines()) + "\n", "utf-8")
    return WorldTokenizer.from_file(path)


def longest_matches(text, tokens):
    """The definition: of all tokens that match here, the longest."""
    data, at = text.encode(), 0
    while at < len(data):
        token = max((t for t in tokens if data.startswith(t, at)), key=len)
        yield tokens[token]
        at += len(token)


@given(text=st.one_of(UNICODE, st.lists(st.sampled_from([*WORDS, "€", "中", "t", " "])).map("".join)))
def test_every_token_is_the_longest_that_matches(world, text):
    ids = world.encode(text)
    assert ids.tolist() == list(longest_matches(text, world._ids))
    assert world.decode(ids) == text


def test_by_hand(world):
    vocabulary = {token: id for id, token in world._tokens.items()}
    ids = [vocabulary[t] for t in (b"then", b" the", b"  ", b" ", "€".encode(), b"p")]
    assert world.encode("then the   €p").tolist() == ids
    assert world.encode("").tolist() == [] and world.encode("a").tolist() == [ord("a") + 1]


def test_ids_sizes_and_the_separator(world):
    assert (world.separator_id, world.vocab_size) == (0, len(lines()) + 1)
    assert world.decode([0, world.encode("the")[0], 0]) == "the"
    with pytest.raises(DataError, match=f"token id {world.vocab_size} is not in the vocabulary"):
        world.decode([world.vocab_size])


def test_half_a_character_waits_in_a_stream(world):
    half = world._ids[b"\xe2\x82"]
    decoder = StreamDecoder(world)
    assert [decoder.push(half), decoder.push(0xAC + 1)] == ["", "€"]


def test_saved_and_loaded_it_is_the_same(world, tmp_path):
    world.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.digest, loaded.name, loaded.vocab_size) == (world.digest, world.name, world.vocab_size)
    assert loaded.encode("the phases lock €").tolist() == world.encode("the phases lock €").tolist()


def test_by_name_from_a_file_or_its_folder(world, tmp_path):
    (tmp_path / VOCABULARY).write_text("\n".join(lines()), "utf-8")
    for target in (tmp_path, tmp_path / VOCABULARY):
        assert make_tokenizer(f"world:{target}").digest == world.digest
    with pytest.raises(ConfigError, match=", world:PATH, gpt2:PATH"):
        make_tokenizer("world:")
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*no such file"):
        make_tokenizer(f"world:{tmp_path}/absent.txt")


@pytest.mark.skipif(find_spec("rwkv") is None, reason="the rwkv package has the published vocabulary")
def test_the_published_vocabulary_gives_the_ids_of_its_authors(monkeypatch):
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    path = str(files("rwkv") / VOCABULARY)
    ours, theirs = WorldTokenizer.from_file(path), TRIE_TOKENIZER(path)
    english = (files("kssm_mlx.data") / "english.txt").read_text("utf-8")
    for text in (
        english,
        "Ünïcödé — 中文字符，日本語、한국어 🙂👩‍🚀",
        "def f(x):\n\t\treturn x**2  # 1e-05\r\n\0",
    ):
        assert ours.encode(text).tolist() == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == 65_530


@pytest.mark.parametrize(
    "line, message",
    [
        ("300 'abc' 4", "expected 4 bytes under an id from 1 on"),
        ("300 'abc'", "expected an id, a Python literal and a length"),
        ("300 abc 3", "expected an id, a Python literal and a length"),
        ("300 __import__('os') 3", "expected an id, a Python literal and a length"),
        ("300 3 1", "expected 1 bytes under an id from 1 on"),
        ("0 'abc' 3", "under an id from 1 on"),
        ("7 'abc' 3", "line 269: id 7 was there before"),
        ("300 'the' 3", "the token b'the' has two ids"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join([*lines(), line]), "utf-8")
    with pytest.raises(DataError, match=message):
        WorldTokenizer.from_file(path)


def test_a_vocabulary_without_all_bytes_is_refused(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(lines()[10:]), "utf-8")
    with pytest.raises(DataError, match="lacks 10 single bytes, the first is 0"):
        WorldTokenizer.from_file(path)
