"""Tokenizer files that somebody damaged or made up: one line each."""

import base64
import json

import pytest

from kssm_mlx.data.tokenizers.factory import load_tokenizer, make_tokenizer
from kssm_mlx.data.tokenizers.hf_backend import HFTokenizer
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokenizers.protocol import canonical_json
from kssm_mlx.data.tokenizers.published import read_ranks
from kssm_mlx.data.tokenizers.rwkv_world import WorldTokenizer
from kssm_mlx.errors import DataError


def refused(call, *arguments) -> str:
    with pytest.raises(DataError) as e:
        call(*arguments)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


@pytest.mark.parametrize(
    "line",
    [
        "1 {[]:1} 1",
        f"1 {'-' * 200_000}1 1",
        f"1 {'(' * 1500} 1",
        f"1 {'-' * 1500}1 1",
        "1 'a' 1 2 3",
        "1 ('a', 'b', 'c') 3",
        "1 '\\ud800' 1",
        f"{'9' * 5000} 'a' 1",
        f"{1 << 40} 'a' 1",
        "1 'a' -1",
        "1 None 1",
        "x 'a' 1",
        "1 'a'*10**9 1",
        "1 __import__('os') 1",
        "1",
    ],
)
def test_a_line_of_the_world_vocabulary(tmp_path, line):
    (tmp_path / "v.txt").write_text(line)
    assert "line 1: expected" in refused(WorldTokenizer.from_file, tmp_path / "v.txt")


def ranks(tmp_path, *lines: bytes):
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("line", ["é 0".encode(), b"\xff 0", b"IQ== x", b"IQ==", "IQ== ²".encode()])
def test_a_line_of_ranks(tmp_path, line):
    refused(read_ranks, ranks(tmp_path, line))


def test_ranks_of_a_few_bytes(tmp_path):
    assert "byte" in refused(read_ranks, ranks(tmp_path, base64.b64encode(b"a") + b" 0"))


OURS = {
    "three items": {"kind": "rwkv-world", "tokens": [[1, "a", 3]]},
    "no latin-1": {"kind": "rwkv-world", "tokens": [[1, "中"]]},
    "ids as text": {"kind": "rwkv-world", "tokens": [["1", "a"]]},
    "a huge id": {
        "kind": "rwkv-world",
        "tokens": [[b + 1 + (b == 255) * 10**12, chr(b)] for b in range(256)],
    },
    "tokens as a number": {"kind": "rwkv-world", "tokens": 3},
    "characters as a list": {"kind": "chars", "characters": ["a"]},
    "characters twice": {"kind": "chars", "characters": "aab"},
    "characters in disorder": {"kind": "chars-reserved", "characters": "ba"},
    "half a surrogate pair": {"kind": "chars", "characters": "a\ud800"},
    "a negative vocabulary": {"kind": "ids", "vocab_size": -3},
    "a vocabulary as text": {"kind": "ids", "vocab_size": "3"},
    "another kind": {"kind": "magic"},
    "no kind": {},
    "a list": [],
    "an empty tokenizer.json": {"kind": "hf", "content": {}},
}


@pytest.mark.parametrize("case", OURS)
def test_our_own_file(tmp_path, case):
    table = {"format": "kssm-tokenizer/1", "name": "x", "digest": "0" * 64, "tokenizer": OURS[case]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    refused(load_tokenizer, tmp_path)


@pytest.mark.parametrize("change", [{"name": 3}, {"digest": None}, {"digest": [1]}, {"name": "\ud800"}])
def test_what_stands_around_it(tmp_path, change):
    described = ByteTokenizer().describe()
    table = {"format": "kssm-tokenizer/1", "name": "bytes", "digest": ByteTokenizer().digest}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**table, "tokenizer": described, **change}))
    refused(load_tokenizer, tmp_path)
    assert canonical_json(described)


def test_a_panic_of_the_library_is_one_line(capfd):
    """A prefix that is longer than a token: the library panics, and its PanicException is no Exception."""
    model = {
        "type": "BPE",
        "vocab": {"a": 0, "é": 1, "aé": 2},
        "merges": ["a é"],
        "continuing_subword_prefix": "BPE",
    }
    refused(HFTokenizer, json.dumps({"version": "1.0", "added_tokens": [], "model": model}), "x")
    capfd.readouterr()  # where it says so itself


def test_an_exception_that_is_none_is_caught(monkeypatch):
    tokenizer = HFTokenizer('{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}}', "x")

    class PanicException(BaseException):
        pass

    class Backend:
        def decode(self, *_, **__):
            raise PanicException("inside\nof it")

    monkeypatch.setattr(tokenizer, "backend", Backend())
    assert refused(tokenizer.decode, [0]) == "x cannot be used on this text: inside"


@pytest.mark.parametrize("spec", ["hf:{}", "gpt2:{}", "world:{}"])
def test_a_folder_in_place_of_a_file(tmp_path, spec):
    (tmp_path / "tokenizer.json").mkdir()
    refused(make_tokenizer, spec.format(tmp_path))
