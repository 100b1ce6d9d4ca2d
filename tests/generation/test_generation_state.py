"""A conversation continued from a file gives the same tokens as in one go, and only with its own weights."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from kssm_mlx import models
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.data.tokenizers.streaming import Tail
from kssm_mlx.errors import CheckpointError
from kssm_mlx.generation import generate, load_state, save_state, stack
from kssm_mlx.generation import state as states
from kssm_mlx.generation.sampling import repetition_penalty
from kssm_mlx.generation.state import require_fit
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
    with pytest.raises(CheckpointError, match="not written by --state-out of this"):
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


@pytest.fixture
def saved(model, tmp_path):
    state = generate(model, ByteTokenizer(), "hello", max_tokens=5)[0].state
    save_state(tmp_path / "s", state, WEIGHTS)
    return state, tmp_path / "s"


def test_every_flipped_bit_is_noticed(model, saved):
    state, path = saved
    raw = path.read_bytes()
    for at in range(8, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises(CheckpointError) as refused:
            load_state(path, WEIGHTS)
        assert "\n" not in str(refused.value)
    path.write_bytes(raw)
    assert mx.array_equal(load_state(path, WEIGHTS).pending, state.pending)


def test_every_cut_is_noticed(saved):
    raw = saved[1].read_bytes()
    for end in range(0, len(raw), 9):
        saved[1].write_bytes(raw[:end])
        with pytest.raises(CheckpointError):
            load_state(saved[1], WEIGHTS)


def changed(state, **changes):
    return replace(state, **changes)


HOSTILE = {
    "an id beyond the vocabulary": (lambda s: changed(s, pending=mx.array([100000])), "id 100000"),
    "an id beyond it in silence": (lambda s: changed(s, pending=mx.array([256])), "id 256"),
    "a negative id": (lambda s: changed(s, pending=mx.array([-1])), "id -1"),
    "history beyond the vocabulary": (
        lambda s: changed(s, history=s.history * 0 + 5000),
        "history has id 5000",
    ),
    "history below nothing": (lambda s: changed(s, history=s.history * 0 - 2), "history has id -2"),
    "another cache": (lambda s: changed(s, cache=[]), "other parts"),
    "more blocks": (lambda s: changed(s, cache=[*s.cache, *s.cache]), "other parts"),
    "another width": (
        lambda s: changed(s, cache=tree_map(lambda a: mx.concatenate([a, a], axis=-1), s.cache)),
        "has shape",
    ),
    "another rank": (lambda s: changed(s, cache=tree_map(lambda a: a[..., None], s.cache)), "another kind"),
    "another dtype": (
        lambda s: changed(s, cache=tree_map(lambda a: a.astype(mx.int32), s.cache)),
        "another kind",
    ),
    "text beyond the vocabulary": (lambda s: changed(s, tails=(Tail((5000,), 0),)), "beyond the vocabulary"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_state_that_does_not_fit_is_refused_before_it_is_used(model, saved, tmp_path, case):
    """Also from a file whose digest is right: whoever writes a file can write that too."""
    change, message = HOSTILE[case]
    state = through_a_file(change(saved[0]), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        generate(model, ByteTokenizer(), "", state=state, max_tokens=3, repetition_penalty=1.3)


@pytest.mark.parametrize("family", ["kssm", "mamba", "mamba2", "rwkv", "rwkv7", "transformer"])
def test_the_states_of_every_family_fit_themselves(family, tmp_path):
    model = models.build(models.configure(family, "xs", vocab_size=256, overrides={}))
    rows = generate(model, endless(), ["hello", "a longer prompt"], max_tokens=4)
    state = through_a_file(stack([row.state for row in rows]), tmp_path)
    require_fit(state, model, 256)
    assert [len(row.ids) for row in generate(model, endless(), ["", "more"], state=state, max_tokens=3)] == [
        3,
        3,
    ]


WRONG_PARTS = {
    "keys of another kind": {"keys": lambda a: a.astype(mx.float32)},
    "keys of three numbers": {"keys": lambda a: mx.concatenate([a, a], axis=1)},
    "pending of two dimensions": {"pending": lambda a: a[None]},
    "pending as floats": {"pending": lambda a: a.astype(mx.float32)},
    "history of one dimension": {"history": lambda a: a[0]},
    "more conversations": {"history": lambda a: mx.concatenate([a, a])},
}


@pytest.mark.parametrize("case", WRONG_PARTS)
def test_parts_of_another_kind_are_refused(saved, tmp_path, case):
    state = saved[0]
    changes = {name: change(getattr(state, name)) for name, change in WRONG_PARTS[case].items()}
    with pytest.raises(CheckpointError, match="not a readable state file"):
        through_a_file(replace(state, **changes), tmp_path)


@pytest.mark.parametrize("name", ["pending", "keys", "history"])
def test_a_missing_tensor_is_one_line(saved, name):
    _, path = saved
    tensors, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
    mx.eval(tensors)
    del tensors[name]
    with open(path, "wb") as f:
        mx.save_safetensors(f, tensors, {**metadata, "digest": states.digest_of_file(tensors, metadata)})
    with pytest.raises(CheckpointError, match="incomplete"):
        load_state(path, WEIGHTS)


def test_the_penalty_writes_nowhere_else():
    logits = mx.ones((1, 4))
    out = repetition_penalty(logits, mx.array([[100000, -7, 2]]), 2.0)
    assert out.tolist() == [[1, 1, 0.5, 1]]
