"""Turns of a conversation: what is read anew, what is saved, what a template makes of them."""

import json

import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import CheckpointError, ConfigError, DataError
from kssm_mlx.generation import generate, save_state
from kssm_mlx.generation.chat import (
    Conversation,
    answer,
    compile_template,
    load_conversation,
    make_template,
    save_conversation,
)
from kssm_mlx.models.base import Trained
from tests.support.fakes import TinyRecurrent
from tests.support.generation_fakes import Counting

pytestmark = pytest.mark.usefixtures("uncompiled")
SOURCE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'user' %};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPTIONS = {"max_tokens": 6, "temperature": 1.0, "stop_at_separator": False}


def trained(model=None, path=None):
    notes = {} if path is None else {"path": str(path)}
    return Trained(model or TinyRecurrent(256), ByteTokenizer(), "m", "d" * 64, notes)


@pytest.mark.parametrize("render", [None, compile_template(SOURCE, {"bos_token": "^"})])
def test_a_conversation_is_what_one_pass_over_all_of_it_is(render):
    model = trained()
    first = answer(model, Conversation(), "one", render, **OPTIONS)
    second = answer(model, first, "two", render, **{**OPTIONS, "temperature": 0})
    said = [m["content"] for m in second.messages]
    line = "" if said[1].endswith("\n") else "\n"
    whole = f"one\n{said[1]}{line}two\n" if render is None else render(second.messages[:3])
    (alone,) = generate(model, [whole], **{**OPTIONS, "temperature": 0})
    assert said[::2] == ["one", "two"] and said[3] == alone.text


def test_only_what_is_new_is_read():
    model = Counting()
    talk = answer(trained(model), Conversation(), "x" * 100, **OPTIONS)
    model.longest = 0
    answer(trained(model), talk, "short", **OPTIONS)
    assert model.longest < 10


def test_a_template_that_changes_what_was_said_is_read_from_the_beginning():
    shortened = compile_template("{% for m in messages[-2:] %}{{ m.content[:2] }};{% endfor %}", {})
    first = answer(trained(), Conversation(), "one", shortened, **OPTIONS)
    second = answer(trained(), first, "two", shortened, **{**OPTIONS, "temperature": 0})
    (alone,) = generate(trained(), [shortened(second.messages[:3])], **{**OPTIONS, "temperature": 0})
    assert second.messages[3]["content"] == alone.text


def test_the_token_that_ends_an_answer_is_not_read_twice():
    """Every token ends a text here; the template writes the one that came, as those of models do."""
    model = trained()
    model.tokenizer.stop_ids = tuple(range(256))
    options = {**OPTIONS, "stop_at_separator": True, "temperature": 0}
    drawn = (
        answer(model, Conversation(), "one", lambda _: "one;", **{**options, "temperature": 1.0, "seed": s})
        for s in range(100)
    )
    first = next(talk for talk in drawn if 32 < talk.state.pending.tolist()[0] < 127)  # a character
    (end,) = model.tokenizer.decode(first.state.pending.tolist())
    assert first.messages[-1]["content"] == "" and first.read == f"one;{end}"
    second = answer(model, first, "two", lambda messages: f"one;{end}two;", **options)
    (alone,) = generate(model, [f"one;{end}two;"], **options)
    assert second.state.pending.tolist() == alone.state.pending.tolist()
    plain = answer(model, Conversation(), "one", **options)
    assert plain.read == ""  # behind the end of a document no line is to be ended


def test_other_random_numbers_from_a_turn_on():
    first = answer(trained(), Conversation(), "one", **OPTIONS)
    texts = [answer(trained(), talk, "two", **OPTIONS).messages[-1] for talk in (first, first.reseed(7))]
    assert texts[0] != texts[1] and Conversation().reseed(3) == Conversation()


def test_a_conversation_goes_on_from_its_file(tmp_path):
    render = compile_template(SOURCE, {"bos_token": ""})
    first = answer(trained(), Conversation(), "one", render, **OPTIONS)
    save_conversation(tmp_path / "s", first, "d" * 64)
    again = load_conversation(tmp_path / "s", "d" * 64)
    assert (again.messages, again.read) == (first.messages, first.read)
    there, here = (answer(trained(), talk, "two", render, **OPTIONS) for talk in (first, again))
    assert there.messages == here.messages
    with pytest.raises(CheckpointError, match="is a state of weights"):
        load_conversation(tmp_path / "s", "e" * 64)


def test_a_state_of_generate_is_gone_on_from_and_several_texts_are_refused(tmp_path):
    one, two = (generate(trained(), p, **OPTIONS) for p in (["a"], ["a", "b"]))
    save_state(tmp_path / "s", one[0].state, "d" * 64)
    assert load_conversation(tmp_path / "s", "d" * 64).messages == ()
    from kssm_mlx.generation import stack

    save_state(tmp_path / "t", stack([c.state for c in two]), "d" * 64)
    with pytest.raises(CheckpointError, match="holds 2 texts"):
        load_conversation(tmp_path / "t", "d" * 64)
    with pytest.raises(ConfigError, match="nothing was said yet"):
        save_conversation(tmp_path / "u", Conversation(), "d" * 64)


@pytest.mark.parametrize("note", ["{", "[]", '{"messages": [1], "read": ""}', '{"messages": [{"role": ""}]}'])
def test_turns_that_are_none_are_refused(tmp_path, note):
    state = answer(trained(), Conversation(), "one", **OPTIONS).state
    save_state(tmp_path / "s", state, "d" * 64, note=note)
    with pytest.raises(CheckpointError, match="has turns that are none"):
        load_conversation(tmp_path / "s", "d" * 64)


def test_the_template_is_found_in_the_file_that_has_it(tmp_path):
    assert make_template(trained()) is None and make_template(trained(path=tmp_path)) is None
    config = {"chat_template": "config {{ bos_token }}", "bos_token": {"content": "^"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert make_template(trained(path=tmp_path))([]) == "config ^"
    several = [{"name": "tool", "template": "no"}, {"name": "default", "template": "default"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": several}))
    assert make_template(trained(path=tmp_path))([]) == "default"
    (tmp_path / "chat_template.jinja").write_text("own {{ messages | tojson }}")
    assert make_template(trained(path=tmp_path))([{"é": 1}]) == 'own [{"é": 1}]'


def test_a_template_that_cannot_be_used_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="chat template cannot be read"):
        compile_template("{% for %}", {})
    for source in ("{{ raise_exception('roles must alternate') }}", "{{ messages.x.y }}", "{{ 1 / 0 }}"):
        with pytest.raises(DataError, match="refuses these turns"):
            compile_template(source, {})([])
    with pytest.raises(DataError, match="refuses"):  # nothing of Python is reachable
        compile_template("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})([])
