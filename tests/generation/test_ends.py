"""Where a text ends: at every token that the model's files name, and at the strings that are asked for."""

import json
import random

import mlx.core as mx
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation import follow, generate, stream
from kssm_mlx.models.base import Output
from kssm_mlx.runner.convert import convert, export
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.weights import export as folders
from kssm_mlx.weights import side_files
from tests.support import weight_files
from tests.support.generation_fakes import Counting, endless
from tests.support.tokenizer_kinds import byte_level


class Says(Counting):
    """Continues any prompt with the bytes of `words`."""

    def __init__(self, words: bytes):
        super().__init__()
        self.words = mx.array([*words, 0])

    def make_cache(self):
        return [[None]]

    def forward(self, tokens, cache=None, intervention=None, **rest):
        B, T = tokens.shape
        at = mx.zeros((B, 1), mx.int32) if cache is None or cache[0][0] is None else cache[0][0]
        said = mx.clip(at + mx.arange(T)[None] - (self.prompt - 1), 0, len(self.words) - 1)
        logits = 50.0 * (self.words[said][..., None] == mx.arange(256))
        return Output(logits.astype(mx.float32), [[at + T]], {})

    def after(self, prompt: str):
        self.prompt = len(prompt.encode())
        return self


def say(words, prompt="?", **options):
    return generate(Says(words).after(prompt), endless(), prompt, **{"max_tokens": len(words), **options})[0]


def test_a_stop_string_ends_a_text_before_it():
    said = say(b"Hello.\nUser: and", stop=["\nUser:", "never"])
    assert (said.text, said.finished) == ("Hello.", "stop")
    assert bytes(said.ids) == b"Hello.\nUser:"


def test_the_first_of_several_stop_strings_counts():
    assert say(b"abcdef", stop=["def", "cd"]).text == "ab"


def test_what_may_be_a_stop_string_is_kept_back_until_it_is_not():
    words, shown = b"a\n\nUse\nUser:b", []
    model = Says(words).after("?")
    options = {"max_tokens": len(words), "stop": ["\nUser:"]}
    said = follow(stream(model, endless(), "?", **options), shown.append)[0]
    assert "".join(piece.text for piece in shown) == said.text == "a\n\nUse"


def test_without_the_stop_string_everything_is_said():
    assert say(b"all \nUser", stop=["\nUser:"]).text == "all \nUser"


def test_a_stop_string_ends_one_row_and_not_the_other():
    model = Says(b"one two three").after("?")
    rows = generate(model, endless(), ["?", "?"], max_tokens=13, stop=["two"])
    assert [row.text for row in rows] == ["one ", "one "]
    alone = generate(model, endless(), "?", max_tokens=7, stop=["two"])[0]
    assert mx.array_equal(alone.state.cache[0][0], rows[0].state.cache[0][0])


@pytest.mark.parametrize("stop", ["word", [""]])
def test_stop_strings_that_are_none_are_refused(stop):
    with pytest.raises(ConfigError, match="a list of strings"):
        say(b"x", stop=stop)


@pytest.mark.parametrize("ends", [(), (46,), (33, 46)])
def test_every_stop_token_ends_a_text(ends):
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = ends
    said = generate(Says(b"Well! So. x").after("?"), tokenizer, "?", max_tokens=11)[0]
    assert said.text == {(): "Well! So. x", (46,): "Well! So", (33, 46): "Well"}[ends]


def test_cut_anywhere_two_calls_say_what_one_says():
    words = "中文 naïve 👍🏽 東京".encode()
    for cut in range(1, len(words)):
        first = say(words, max_tokens=cut)
        second = generate(
            Says(words).after("?"), endless(), "", state=first.state, max_tokens=len(words) - cut
        )
        assert first.text + second[0].text == words.decode()


def folder(path, **files):
    """A model with GPT-2's kind of tokenizer and these JSON files beside it."""
    weight_files.folder(path, "mamba", vocab_size=320)
    byte_level().backend.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        file = path / f"{name}.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(kept | content))
    return path


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (0,)),
        ({"config": {"eos_token_id": 1}}, (1,)),
        ({"config": {"eos_token_id": [1, 7]}}, (1, 7)),
        ({"generation_config": {"eos_token_id": [1, 5]}, "config": {"eos_token_id": 0}}, (0, 1, 5)),
        ({"generation_config": {"eos_token_id": 5}}, (5,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, (1,)),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}}}, (1,)),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, (1,)),
        ({"tokenizer_config": {"eos_token": "<nothing>"}}, (0,)),
    ],
)
def test_the_files_of_a_model_say_where_a_text_ends(tmp_path, files, ends):
    assert open_model(folder(tmp_path / "m", **files), verify=False).tokenizer.stop_ids == ends


@pytest.mark.parametrize("end", ["1", -1, 1.5, [None], {"id": 1}, True])
def test_an_end_that_is_no_token_is_one_line(tmp_path, end):
    with pytest.raises(ConfigError, match=r"eos_token_id = .*expected an id or a list of ids"):
        open_model(folder(tmp_path / "m", generation_config={"eos_token_id": end}), verify=False)


CARRIED = {
    "generation_config.json": '{"eos_token_id": [1, 5], "temperature": 0.7}',
    "tokenizer_config.json": '{"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "x": 1}',
    "special_tokens_map.json": '{"pad_token": "<|endoftext|>"}',
    "chat_template.jinja": "{{ messages }}",
    "added_tokens.json": "{}",
}


@pytest.mark.parametrize("how", ["mlx-lm", "hf", "convert"])
def test_side_files_go_through_export_and_convert_unchanged(tmp_path, how):
    source = folder(tmp_path / "m", config={"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0})
    for name, text in CARRIED.items():
        (source / name).write_text(text)
    if how == "convert":
        convert(source, tmp_path / "out", bits=8, group_size=32, verify=False, text="the cat sat " * 200)
    else:
        export(source, tmp_path / "out", format=how, verify=False)
    for name in [*CARRIED, "tokenizer.json"]:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [config[key] for key in side_files.TOKEN_IDS] == [0, 1, 0]
    assert open_model(tmp_path / "out", verify=False).tokenizer.stop_ids == (1, 5)


def test_a_source_that_names_no_end_gets_ours(tmp_path):
    export(folder(tmp_path / "m"), tmp_path / "out", verify=False)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [0]


def test_without_a_tokenizer_generation_config_is_still_carried(tmp_path):
    source = folder(tmp_path / "m", generation_config={"eos_token_id": 5})
    export(source, tmp_path / "out", tokenizer=False, verify=False)
    assert not (tmp_path / "out/tokenizer.json").exists()
    assert (tmp_path / "out/generation_config.json").read_bytes() == (
        source / "generation_config.json"
    ).read_bytes()


def test_transformers_mlx_lm_and_we_stop_at_the_same_token(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers computes with torch, which is not installed")
    from mlx_lm.utils import load_config
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source = folder(tmp_path / "m", tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    opened = open_model(source, verify=False)
    free = generate(opened.model, opened.tokenizer, "the cat", max_tokens=40, stop_at_separator=False)[0]
    ends = sorted(random.Random(0).sample(sorted(set(free.ids[3:])), 2))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    folders_hf = export(source, tmp_path / "hf", format="hf", verify=False)
    ours = open_model(folders_hf, verify=False)
    said = generate(ours.model, ours.tokenizer, "the cat", max_tokens=40)[0]
    theirs = AutoModelForCausalLM.from_pretrained(folders_hf)
    ids = AutoTokenizer.from_pretrained(folders_hf)("the cat", return_tensors="pt").input_ids
    with torch.no_grad():
        out = theirs.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ].tolist()
    assert said.finished == "separator" and out[-1] in ends and out[:-1] == list(said.ids)
    assert load_config(export(source, tmp_path / "mlx", verify=False))["eos_token_id"] == ends


def test_names_of_the_side_files():
    from kssm_mlx.data.tokenizers import rwkv_world
    from kssm_mlx.data.tokenizers.protocol import FILE

    assert {FILE, rwkv_world.VOCABULARY} <= set(side_files.NAMES)
    assert folders.FORMATS
