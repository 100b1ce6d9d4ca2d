"""Every model family keeps the promises of generation, at its smallest size and with fresh weights."""

import numpy as np
import pytest

from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.generation import generate, load_state, save_state, stack
from kssm_mlx.generation.decode import prefill
from kssm_mlx.models import FAMILIES, build, configure

pytestmark = pytest.mark.usefixtures("uncompiled")
PROMPTS = ["a", "unequal lengths are where batches go wrong", "three words here"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(configure(request.param, "xs", vocab_size=256, context=64), seed=1)


def say(model, prompts, n, **more):
    tokenizer = ByteTokenizer()
    tokenizer.separator_id = None
    return generate(model, tokenizer, prompts, max_tokens=n, temperature=1.0, top_k=50, **more)


def test_each_row_of_a_batch_is_its_solo_run(model):
    together = say(model, PROMPTS, 16, seeds=[1, 2, 3])
    alone = [say(model, prompt, 16, seed=seed)[0] for prompt, seed in zip(PROMPTS, [1, 2, 3])]
    assert [row.ids for row in together] == [row.ids for row in alone]


def test_going_on_from_a_file_is_going_on(model, tmp_path):
    whole = say(model, PROMPTS, 16)
    first = say(model, PROMPTS, 6)
    save_state(tmp_path / "talk", stack([row.state for row in first]), "w" * 64)
    second = say(model, ["", "", ""], 10, state=load_state(tmp_path / "talk", "w" * 64))
    assert [a.ids + b.ids for a, b in zip(first, second)] == [row.ids for row in whole]


def test_prefill_in_chunks_is_prefill_at_once(model):
    rows = [np.arange(n, dtype=np.int32) for n in (0, 7, 40)]
    pieces, whole = (prefill(model, model.make_cache(), rows, chunk) for chunk in (16, 512))
    for a, b in zip(pieces, whole, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(np.array(x), np.array(y), atol=2e-5)
