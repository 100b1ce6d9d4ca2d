"""An exported folder in mlx-lm's own tools gives what `kssm generate` gives, alone and in a batch."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import mlx.core as mx
import pytest

from kssm_mlx.generation import generate
from tests.support.exported import SMALL, TOKENIZER, exported, tiny

PROMPTS = ["Hello world", "a", "The quick brown fox jumps over it"]
MAX = 12
pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """family -> (our model, mlx-lm's model and tokenizer of the folder it was exported to)."""
    from mlx_lm import load

    found = {}

    def get(family):
        if family not in found:
            model = tiny(family)
            folder = exported(model, tmp_path_factory.mktemp(family) / "folder")
            found[family] = (model, *load(str(folder), trust_remote_code=True))
        return found[family]

    return get


def expected(model, prompts=PROMPTS):
    """What mlx-lm should say: our greedy tokens, and the end of text where a row met it."""
    rows = generate(model, TOKENIZER, prompts, max_tokens=MAX)
    return [[*row.ids, *([TOKENIZER.separator_id] if row.finished == "separator" else [])] for row in rows]


@pytest.mark.parametrize("family", SMALL)
def test_same_greedy_tokens_alone(hosted, family):
    from mlx_lm import stream_generate

    model, theirs, tokenizer = hosted(family)
    alone = [
        [r.token for r in stream_generate(theirs, tokenizer, tokenizer.encode(p), max_tokens=MAX)]
        for p in PROMPTS
    ]
    assert alone == expected(model)


@pytest.mark.parametrize("family", SMALL)
def test_prompts_of_unequal_length_in_one_batch(hosted, family):
    from mlx_lm import batch_generate

    model, theirs, tokenizer = hosted(family)
    batch = batch_generate(theirs, tokenizer, [tokenizer.encode(p) for p in PROMPTS], max_tokens=MAX)
    alone = generate(model, TOKENIZER, PROMPTS, max_tokens=MAX)
    # A character that is cut at the last token is U+FFFD to mlx-lm; ours keeps it in the state.
    cut = [theirs.removeprefix(ours.text) for theirs, ours in zip(batch.texts, alone, strict=True)]
    assert set(cut) <= {"", "\ufffd"}


@pytest.mark.parametrize("family", SMALL)
def test_a_prompt_cut_into_chunks_and_joined_by_another_later(hosted, family):
    """Chunks of 4 tokens end before and after the rows do; a late row starts from zeros."""
    from mlx_lm.generate import BatchGenerator

    model, theirs, _ = hosted(family)
    ids = [TOKENIZER.encode(p).tolist() for p in PROMPTS]
    batch = BatchGenerator(theirs, max_tokens=MAX, stop_tokens=[[0]], prefill_step_size=4)
    order = batch.insert(ids[1:])
    got, calls, open_rows = {uid: [] for uid in order}, 0, 3
    while open_rows:
        calls += 1
        if calls == 3:
            order = [*batch.insert(ids[:1]), *order]
            got[order[0]] = []
        _, answers = batch.next()
        for answer in answers:
            got[answer.uid].append(answer.token)
            open_rows -= answer.finish_reason is not None
    assert [got[uid] for uid in order] == expected(model)


@pytest.mark.parametrize("family", SMALL)
def test_a_cache_of_zeros_is_a_blank_one(family):
    """What mlx-lm gives to a row that joins a batch. Sums of RWKV-4 far below 1 would be 0 / 0."""
    model, ids = tiny(family), mx.array(TOKENIZER.encode(PROMPTS[2]))[None]
    if family == "rwkv":
        for layer in model.layers:
            layer.attention.time_first = layer.attention.time_first - 200
    blank = model.forward(ids[:, :1]).cache
    zeros = [[mx.zeros_like(array) for array in entry] for entry in blank]
    assert mx.allclose(model.forward(ids, zeros).logits, model.forward(ids).logits, atol=1e-5)


def test_a_prompt_cache_is_saved_and_loaded_by_mlx_lm(hosted, tmp_path):
    from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

    _, theirs, tokenizer = hosted("rwkv")
    ids = mx.array(tokenizer.encode(PROMPTS[2]))[None]
    whole = theirs(ids)
    cache = make_prompt_cache(theirs)
    theirs(ids[:, :9], cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    again = theirs(ids[:, 9:], load_prompt_cache(str(tmp_path / "cache.safetensors")))
    assert mx.allclose(again, whole[:, 9:], atol=1e-5)


def test_without_the_flag_mlx_lm_refuses_and_names_our_file(tmp_path):
    from mlx_lm import load

    folder = exported(tiny("kssm"), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"kssm_model\.py"):
        load(str(folder))


def tool(name: str, *arguments) -> str:
    """What a tool of mlx-lm prints, run as a user would."""
    command = [sys.executable, "-m", "mlx_lm", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def said(folder, *more) -> str:
    options = ("--trust-remote-code", "--prompt", PROMPTS[2], "--max-tokens", MAX, "--verbose", "False")
    return tool("generate", "--model", folder, *options, *more)


def test_the_generate_command(tmp_path):
    model = tiny("kssm")
    (ours,) = generate(model, TOKENIZER, PROMPTS[2], max_tokens=MAX)
    assert said(exported(model, tmp_path / "folder")) == ours.text + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_the_convert_command_quantises_what_our_predicate_allows(family, tmp_path):
    folder, to = exported(tiny(family), tmp_path / "folder"), tmp_path / "quantised"
    tool("convert", "--hf-path", folder, "--mlx-path", to, "-q", "--q-group-size", 32, "--trust-remote-code")
    names = mx.load(str(to / "model.safetensors")).keys()
    quantised = {name.removesuffix(".scales") for name in names if name.endswith(".scales")}
    allows = tiny(family).quant_predicate
    assert quantised and all(allows(name, None) for name in quantised)
    assert len(said(to)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_the_lora_command_trains_and_its_adapter_is_used(family, tmp_path):
    folder, data = exported(tiny(family), tmp_path / "folder"), tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"text": f"{i} times {i} is {i * i}, as everybody knows"}) for i in range(8)]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("\n".join(rows))
    options = ("--iters", 3, "--batch-size", 2, "--num-layers", 2, "--max-seq-length", 64, "--val-batches", 1)
    adapter = ("--adapter-path", tmp_path / "adapter")
    rate = ("--learning-rate", 0.05)
    tool(
        "lora", "--model", folder, "--train", "--data", data, *options, *rate, *adapter, "--trust-remote-code"
    )
    assert said(folder, *adapter) != said(folder)


@pytest.mark.slow
def test_the_server_completes(tmp_path):
    model = tiny("mamba")
    with server(exported(model, tmp_path / "folder")) as ask:
        body = {"model": "default_model", "prompt": PROMPTS[2], "max_tokens": MAX, "temperature": 0}
        answer = ask("/v1/completions", body)
    (ours,) = generate(model, TOKENIZER, PROMPTS[2], max_tokens=MAX)
    assert answer["choices"][0]["text"] == ours.text


@contextmanager
def server(folder):
    """mlx_lm.server of a folder on a free port of this machine; gives a function that posts JSON to it."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--trust-remote-code"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    def ask(path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    try:
        wait_until_healthy(port, process)
        yield ask
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until_healthy(port: int, process: subprocess.Popen) -> None:
    import time

    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(process.stderr.read().decode()[-2000:])
