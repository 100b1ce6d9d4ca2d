"""A conversation continued from a file gives the same tokens as in one go, and only with its own weights."""

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import CheckpointError
from kssm_mlx.generation import generate, load_state, save_state, stack
from tests.support.generation_fakes import Counting, endless

pytestmark = pytest.mark.usefixtures("uncompiled")  # compiled decoding is that of test_generate.py
SETTINGS = {
    "greedy": {"repetition_penalty": 1.4, "repetition_window": 9},
    "sampled": {"temperature": 1.1, "top_p": 0.95, "repetition_penalty": 1.2},
}
WEIGHTS = "a" * 64


@pytest.fixture(scope="module")
def model():
    return Counting()


def through_a_file(state, folder):
    save_state(folder / "talk.safetensors", state, WEIGHTS)
    return load_state(folder / "talk.safetensors", WEIGHTS)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_going_on_from_a_file_is_going_on(model, settings, tmp_path):
    def say(prompts, n, **more):
        return generate(model, endless(), prompts, max_tokens=n, **settings, **more)

    prompts = ["first speaker", "second"]
    whole = say(prompts, 50, seeds=[5, 6])
    first = say(prompts, 20, seeds=[5, 6])
    kept = through_a_file(stack([row.state for row in first]), tmp_path)
    second = say(["", ""], 30, state=kept)
    assert [a.ids + b.ids for a, b in zip(first, second)] == [row.ids for row in whole]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_new_turn_added_to_a_file_is_a_new_turn(model, settings, tmp_path):
    def say(prompt, **more):
        return generate(model, endless(), prompt, max_tokens=25, **settings, **more)[0]

    first = say("question?", seed=3)
    in_memory = say(" and then?", state=first.state)
    from_file = say(" and then?", state=through_a_file(first.state, tmp_path))
    assert from_file.ids == in_memory.ids


def test_a_new_turn_reads_the_same_text_as_one_long_prompt(model, tmp_path):
    first = generate(model, endless(), "question?", max_tokens=7)[0]
    second = generate(model, endless(), "more", state=through_a_file(first.state, tmp_path))[0]
    tokens = mx.array([[*b"question?", *first.ids, *b"more"]])
    assert second.ids[0] == mx.argmax(model(tokens)[0, -1]).item()


def test_a_wider_repetition_window_can_be_used_later(model):
    first = generate(model, endless(), "abc", max_tokens=5, repetition_window=2)[0]
    second = generate(model, endless(), "", max_tokens=1, repetition_window=6, state=first.state)[0]
    history = np.array(second.state.history)[0]
    assert list(history) == [-1, -1, -1, *first.ids[-2:], *second.ids]


def test_a_state_of_other_weights_is_refused_in_one_line(model, tmp_path):
    state = generate(model, ByteTokenizer(), "x", max_tokens=3)[0].state
    save_state(tmp_path / "s", state, WEIGHTS)
    with pytest.raises(CheckpointError, match=r"state of weights a{12}, this model has f{12}") as e:
        load_state(tmp_path / "s", "f" * 64)
    assert "\n" not in str(e.value)


def test_what_is_not_a_state_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="no state file"):
        load_state(tmp_path / "absent", WEIGHTS)
    (tmp_path / "junk").write_bytes(b"\xff" * 200)
    with pytest.raises(CheckpointError, match="not a readable state file"):
        load_state(tmp_path / "junk", WEIGHTS)
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"w": mx.ones(3)}, {"format": "mlx"})
    with pytest.raises(CheckpointError, match="not written by kssm generate"):
        load_state(tmp_path / "weights.safetensors", WEIGHTS)


def test_a_truncated_state_is_refused_and_a_failed_write_leaves_the_old_one(model, tmp_path, monkeypatch):
    state = generate(model, ByteTokenizer(), "x", max_tokens=3)[0].state
    path = tmp_path / "s"
    save_state(path, state, WEIGHTS)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kssm_mlx.files.write_synced", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_state(path, state, WEIGHTS)
    assert path.read_bytes() == before
    path.write_bytes(before[:-7])
    with pytest.raises(CheckpointError, match="not a readable state file"):
        load_state(path, WEIGHTS)
