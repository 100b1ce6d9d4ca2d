"""Our models in lm-evaluation-harness: it is answered by our own numbers, and a task of our own runs."""

import importlib.util
import json
import math
import sys
from types import SimpleNamespace

import pytest

from kssm_mlx import load
from kssm_mlx.data.tokenizers.huggingface import tokenizer_files
from kssm_mlx.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation.scoring import score_continuation, score_text
from kssm_mlx.integrations.lm_eval import Answers, _numbers, run_tasks
from kssm_mlx.models.base import Trained
from kssm_mlx.weights.export import export
from tests.support import exported, mlx_lm_models, weight_files
from tests.support.cli_fakes import kssm
from tests.support.fakes import TinyRecurrent

TEXTS = ["A short text.", "Another one, a little longer."]
IS_HERE = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def trained():
    return Trained(TinyRecurrent(256, width=16, blocks=1), ByteTokenizer(), "tiny", "0" * 64)


def requests(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def test_answers_are_our_own_numbers(trained):
    answers, (model, tokenizer) = Answers(trained), trained
    rolling = answers.loglikelihood_rolling(requests(*((text,) for text in TEXTS)))
    assert rolling == [score_text(model, tokenizer, text).nats for text in TEXTS]
    ((nats, greedy),) = answers.loglikelihood(requests(("A short", " text.")))
    assert (nats, greedy) == score_continuation(model, tokenizer, "A short", " text.")[:2]
    (text,) = answers.generate_until(requests(("A short", {"until": ["\n"], "max_gen_toks": 5})))
    assert len(text.encode("utf-8", "replace")) <= 15 and "\n" not in text


def test_a_model_without_a_tokenizer_is_refused(trained):
    with pytest.raises(ConfigError, match="tiny came without a tokenizer, so it cannot read a task"):
        Answers(Trained(trained.model, None, "tiny", "0" * 64))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = weight_files.folder(tmp_path / "m", "mamba", vocab_size=256)
    result = kssm("eval", folder, "--tasks", "ours")
    assert result.exit_code == 2
    assert "--tasks needs lm-evaluation-harness: pip install 'kssm-mlx[eval]'" in result.stderr
    result = kssm("eval", folder, "--tasks", "ours", "--tokens", "300")
    assert result.exit_code == 2 and "does nothing beside --tasks" in result.stderr
    result = kssm("eval", folder, "--limit", "3")
    assert result.exit_code == 2 and "--limit does nothing without --tasks NAME" in result.stderr


PAIRS = [("A short", " text."), ("A short", " story"), ("Another one,", " a little longer."), ("x", "y")]


def task_file(folder, name, rows, **options):
    """A task `name` of rows, as files in `folder`."""
    folder.mkdir(exist_ok=True)
    texts = folder / f"{name}.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(texts)}}}
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, "test_split": "test", **options}))
    return folder


def rolling(folder, name, texts):
    options = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    rows = [{"text": text} for text in texts]
    return task_file(folder, name, rows, metric_list=[{"metric": "bits_per_byte"}], **options)


def continuations(folder, name, pairs):
    """Perplexity is of the continuations alone, each as one."""
    options = {"output_type": "loglikelihood", "doc_to_text": "{{a}}", "doc_to_target": "{{b}}"}
    rows = [{"a": a, "b": b} for a, b in pairs]
    metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
    return task_file(folder, name, rows, target_delimiter="", metric_list=metrics, **options)


def asked_by_mlx_lm(folder, names, tasks):
    """The numbers of mlx-lm's own adapter for lm-evaluation-harness, as `run_tasks` gives ours."""
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from mlx_lm.evaluate import MLXLM  # pyright: ignore[reportMissingImports]

    model = MLXLM(str(folder), trust_remote_code=True)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(model=model, tasks=names, task_manager=manager)
    return {name: _numbers(row) for name, row in found["results"].items()}


def write_checkpoint(family, folder, tokenizer):
    """A llama by mlx-lm itself; Mamba and K-SSM by our export for it."""
    if family == "llama":
        mlx_lm_models.folder(folder, family)
        for name, content in tokenizer_files(tokenizer).items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder
    return export(exported.tiny(family), folder, format="mlx-lm", side_files=tokenizer_files(tokenizer))


@pytest.mark.prints
@pytest.mark.skipif(not IS_HERE, reason="needs the extra eval: pip install 'kssm-mlx[eval]'")
@pytest.mark.parametrize("family", ["llama", "mamba", "kssm"])
def test_mlx_lm_evaluate_gives_the_same_numbers(family, monkeypatch, tmp_path):
    """Where both read the same ids: of a tokenizer without a separator, what `kssm eval --tasks` shows."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    characters = "".join(sorted({*"".join(TEXTS), *"".join(a + b for a, b in PAIRS)}))
    folder = write_checkpoint(family, tmp_path / "model", CharTokenizer(characters))
    tasks = continuations(rolling(tmp_path / "tasks", "whole", TEXTS), "pairs", PAIRS)
    theirs = asked_by_mlx_lm(folder, ["whole", "pairs"], tasks)
    ours = run_tasks(load(folder), ["whole", "pairs"], tasks)
    assert ours["whole"]["bits_per_byte"] == pytest.approx(theirs["whole"]["bits_per_byte"], rel=1e-5)
    nats = [math.log(found["pairs"]["perplexity"]) for found in (ours, theirs)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-5) and nats[0] > 1
    assert ours["pairs"]["acc"] == theirs["pairs"]["acc"]
    said = kssm("eval", folder, "--tasks", "whole", "--task-files", tasks)
    assert said.exit_code == 0 and f"{ours['whole']['bits_per_byte']:.3f}" in said.stdout


@pytest.mark.prints
@pytest.mark.skipif(not IS_HERE, reason="needs the extra eval: pip install 'kssm-mlx[eval]'")
def test_with_a_separator_mlx_lm_reads_what_we_read_when_the_text_has_it(monkeypatch, tmp_path):
    """It puts none before a text, so that the first token of a whole text counts for us alone."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = write_checkpoint("kssm", tmp_path / "model", ByteTokenizer())
    tasks = continuations(tmp_path / "tasks", "pairs", PAIRS)
    continuations(tasks, "opened", [("\0" + a, b) for a, b in PAIRS])
    ours = run_tasks(load(folder), ["pairs"], tasks)["pairs"]["perplexity"]
    theirs = asked_by_mlx_lm(folder, ["pairs", "opened"], tasks)
    assert ours == pytest.approx(theirs["opened"]["perplexity"], rel=1e-4)
    assert ours != pytest.approx(theirs["pairs"]["perplexity"], rel=1e-3)


@pytest.mark.prints
@pytest.mark.skipif(not IS_HERE, reason="needs the extra eval: pip install 'kssm-mlx[eval]'")
def test_a_task_of_our_own_gives_our_bits_per_byte(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    tasks = rolling(tmp_path, "ours", TEXTS)
    nats = sum(score_text(*trained, text).nats for text in TEXTS)
    found = run_tasks(trained, ["ours"], tasks)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["ours"]["bits_per_byte"] == pytest.approx(-nats / size / 0.6931471805599453)
    with pytest.raises(ConfigError, match=r"no task theirs in lm-evaluation-harness; .* has ours"):
        run_tasks(trained, ["theirs"], tasks)
