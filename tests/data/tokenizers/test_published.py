"""gpt2, cl100k and neox: a name is a number of tokens, and a list of ranks is the BPE it implies."""

import base64
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm_mlx.data.corpora.sources import open_corpus
from kssm_mlx.data.tokenizers.bpe import train_bpe
from kssm_mlx.data.tokenizers.factory import make_tokenizer
from kssm_mlx.data.tokenizers.published import PUBLISHED, Published, load_published, read_ranks
from kssm_mlx.errors import DataError

# Ranks learned by hand: "th", "he", "the", " the", "ere", "in", "ing".
MERGED = [b"th", b"he", b"re", b"the", b" the", b"ere", b"in", b"ing"]
TOKENS = [*(bytes([b]) for b in range(255, -1, -1)), *MERGED]
SMALL = Published((269,), len(TOKENS), PUBLISHED["gpt2"].words, {264: "<|endoftext|>", 268: "<|end|>"})


def reference(text, words):
    """Byte pair encoding as in a textbook: the pair whose union has the lowest rank, the leftmost first."""
    import tokenizers

    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
    ids = []
    for word, _ in cut.pre_tokenize_str(text):
        parts = [bytes([b]) for b in word.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def write_ranks(path, tokens=TOKENS):
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = write_ranks(tmp_path_factory.mktemp("ranks") / "small.tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PUBLISHED, "small", SMALL)
        yield load_published("small", str(path))


@given(st.text(alphabet="there ing\n'sé", max_size=40))
def test_a_list_of_ranks_merges_as_byte_pair_encoding_does(small, text):
    assert small.encode(text).tolist() == reference(text, SMALL.words)
    assert small.decode(small.encode(text)) == text


def test_special_tokens_have_their_own_ids_and_gaps_are_counted(small):
    assert (small.vocab_size, small.separator_id) == (269, 264)
    assert small.encode_special("the<|end|>the<|endoftext|>").tolist() == [259, 268, 259, 264]


def test_saved_in_a_run_folder_it_is_the_same(small, tmp_path):
    from kssm_mlx.data.tokenizers.factory import load_tokenizer

    small.save(tmp_path)
    assert load_tokenizer(tmp_path).digest == small.digest


def wordlist(path, size):
    """A tokenizer.json of `size` tokens."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")).save(str(path))
    return path


@pytest.mark.parametrize(
    "name, size", [("gpt2", 50257), ("cl100k", 100277), ("neox", 50277), ("neox", 50254)]
)
def test_a_name_takes_a_file_with_its_number_of_tokens(tmp_path, name, size):
    assert make_tokenizer(f"{name}:{wordlist(tmp_path / 'tokenizer.json', size)}").vocab_size == size


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("cl100k", 50257, "has 50257 tokens, cl100k has 100277: this is gpt2; give the file of cl100k"),
        ("gpt2", 100277, "has 100277 tokens, gpt2 has 50257: this is cl100k"),
        ("neox", 50257, "has 50257 tokens, neox has 50277 or 50254: this is gpt2"),
        ("gpt2", 65536, "has 65536 tokens, gpt2 has 50257; give the file of gpt2"),
    ],
)
def test_the_file_of_another_tokenizer_is_refused_with_both_sizes(tmp_path, name, size, message):
    """K-SSM's larger corpora: text cut with GPT-2's 50,257 tokens, read with cl100k's 100,277."""
    wordlist(tmp_path / "tokenizer.json", size)
    with pytest.raises(DataError, match=message):
        make_tokenizer(f"{name}:{tmp_path}")


@pytest.mark.parametrize(
    "name, expected", [("gpt2", "50256"), ("neox", "a tokenizer.json, since it has no list")]
)
def test_another_list_of_ranks_is_refused(tmp_path, name, expected):
    path = write_ranks(tmp_path / "other.tiktoken")
    with pytest.raises(DataError, match=f"has 264 ranks; expected {expected}"):
        make_tokenizer(f"{name}:{path}")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[:5] + lines[6:], "line 6: expected a token in base64 and rank 5, got '[^']* 6'"),
        (lambda lines: [*lines, "%% 264"], "line 265: expected a token in base64 and rank 264, got '%% 264'"),
        (
            lambda lines: ["YWI= 0", *lines[1:]],
            "is no list of ranks: byte 255 is not among its first 256 tokens",
        ),
    ],
)
def test_a_broken_list_of_ranks_is_refused(tmp_path, change, message):
    path = write_ranks(tmp_path / "bad.tiktoken")
    path.write_text("\n".join(change(path.read_text().split("\n")[:-1])) + "\n")
    with pytest.raises(DataError, match=message):
        read_ranks(path)


def test_a_path_that_is_missing_is_not_asked_of_the_hub():
    with pytest.raises(DataError, match="cannot read the tokenizer openai-community/gpt2: no such file"):
        make_tokenizer("gpt2:openai-community/gpt2")


def test_a_bpe_learned_here_passes_for_none_of_them(tmp_path):
    tokenizer = train_bpe(open_corpus("themes:samples=100").documents, 300)
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend.to_str())
    with pytest.raises(DataError, match="has 300 tokens, gpt2 has 50257"):
        make_tokenizer(f"gpt2:{tmp_path}")
