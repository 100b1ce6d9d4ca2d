"""Our models in lm-evaluation-harness: it is answered by our own numbers, and a task of our own runs."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.errors import ConfigError
from kssm_mlx.generation.scoring import score_continuation, score_text
from kssm_mlx.integrations.lm_eval import Answers, run_tasks
from kssm_mlx.models.base import Trained
from tests.support import weight_files
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
    assert result.exit_code == 2 and "--tasks bring their own texts" in result.stderr
    result = kssm("eval", folder, "--limit", "3")
    assert result.exit_code == 2 and "go with --tasks NAME" in result.stderr


@pytest.fixture
def tasks(tmp_path):
    """A task of two texts, as a folder of files."""
    texts = tmp_path / "texts.json"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "ours.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {texts}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    return tmp_path


@pytest.mark.prints
@pytest.mark.skipif(not IS_HERE, reason="needs the extra eval")
def test_a_task_of_our_own_gives_our_bits_per_byte(trained, tasks, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    nats = sum(score_text(*trained, text).nats for text in TEXTS)
    found = run_tasks(trained, ["ours"], tasks)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["ours"]["bits_per_byte"] == pytest.approx(-nats / size / 0.6931471805599453)
    with pytest.raises(ConfigError, match=r"no task theirs in lm-evaluation-harness; .* has ours"):
        run_tasks(trained, ["theirs"], tasks)
