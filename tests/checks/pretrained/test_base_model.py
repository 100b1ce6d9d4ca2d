"""C10 and C11: a base model that is in the model and reads passes; one that is lost, rebuilt or mute does
not.
"""

from dataclasses import replace

import mlx.core as mx
import pytest

from kssm_mlx import models
from kssm_mlx.checks.core.registry import Context
from kssm_mlx.checks.pretrained.subject import read_english
from kssm_mlx.data.tokenizers.plain import ByteTokenizer
from kssm_mlx.models import adapters
from kssm_mlx.models.grafts.configs import configure
from kssm_mlx.models.grafts.graft import graft
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.weights.quantize import quantize
from tests.support.check_contexts import measure
from tests.support.counted import Counted
from tests.support.exported import SMALL, exported, tiny

pytestmark = pytest.mark.usefixtures("uncompiled")

FAMILIES = ("mamba", "mamba2", "rwkv", "rwkv7", "kssm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family) -> a base model of it, exported once."""
    home, made = tmp_path_factory.mktemp("hosts"), {}

    def of(family):
        made[family] = made.get(family) or exported(tiny(family), home / family)
        return made[family]

    return of


def opened(path) -> Context:
    base_model = open_model(path)
    return Context(
        base_model.model,
        base_model.model.args,
        tokenizer=base_model.tokenizer,
        base_digest=base_model.digest,
        base_notes=base_model.notes,
    )


def adapted(context):
    adapters.attach_lora(context.model, 2, 4.0)
    return context


def grafted(context):
    context.model.freeze()
    return replace(context, model=graft(context.model, configure({})))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("put", [lambda context: context, adapted], ids=["bare", "adapted"])
def test_every_tensor_of_the_base_model_is_found(folder, family, put):
    check = measure("C10", put(opened(folder(family))))
    assert check.verdict == "pass", check.got
    assert "bit for bit" in check.got


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_put_into_few_bits_is_compared_with_the_files_put_into_them(folder, family, mode):
    context = opened(folder(family))
    quantize(context.model, 4, mode, 32)
    adapters.attach_lora(context.model, 2, 4.0, kind="qlora")
    assert measure("C10", context).verdict == "pass"
    (name, adapter), *_ = adapters.adapters_of(context.model).items()
    adapter.linear.weight = adapter.linear.weight ^ 1
    check = measure("C10", context)
    assert check.verdict == "fail" and f"1 not those of the files: {name}.weight" in check.got


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_under_a_graft_too(folder, family):
    assert measure("C10", grafted(opened(folder(family)))).verdict == "pass"


def test_a_block_that_was_built_anew_is_caught(folder):
    """The grafted block 32 of Attempt 1 and 2."""
    context = opened(folder("mamba"))
    fresh = models.build(context.config, seed=5)
    context.model.backbone.layers[1] = fresh.backbone.layers[1]
    check = measure("C10", grafted(context))
    assert check.verdict == "fail" and "not those of the files: backbone.layers.1." in check.got
    assert "never build a block anew" in check.fix


def test_a_fresh_model_in_the_base_models_place_is_caught(folder):
    """The stub loader of Attempt 2."""
    context = opened(folder("mamba"))
    context = replace(context, model=models.build(context.config, seed=5))
    assert " not those of the files" in measure("C10", context).got


def test_a_base_model_with_a_block_too_few_is_caught(folder):
    context = opened(folder("rwkv"))
    context.model.rwkv.blocks = context.model.rwkv.blocks[:1]
    assert " absent: " in measure("C10", context).got


def test_files_of_a_fresh_model_are_caught(tmp_path):
    config = models.configure("mamba2", "xs", vocab_size=256, overrides=SMALL["mamba2"])
    context = opened(exported(models.build(config, seed=0), tmp_path / "fresh"))
    check = measure("C10", context)
    assert (check.verdict, check.got) == ("fail", "the files are 0 from a fresh model")


def test_of_trained_base_models_only_the_frozen_is_compared(folder):
    context = replace(opened(folder("mamba")), history=[{"kind": "train", "step": 5}])
    assert "so they have moved; see C8" in measure("C10", context).got
    adapted(context)
    assert measure("C10", context).verdict == "pass"


@pytest.mark.parametrize("id", ["C10", "C11"])
def test_a_fresh_run_has_no_base_model(id):
    check = measure(id, Context(model=tiny("mamba")))
    assert (check.verdict, check.got) == ("not measurable", "the model began fresh: there is no base model")


def reader(order=3, verified=None) -> Context:
    model = Counted(read_english(), order)
    notes = {"path": "somewhere", "verified": verified}
    return Context(model, model.args, tokenizer=ByteTokenizer(), base_digest="0" * 64, base_notes=notes)


def test_a_base_model_that_reads_passes():
    check = measure("C11", reader())
    assert check.verdict == "pass" and check.got.startswith("W24 ")


@pytest.mark.parametrize("verified, verdict", [(None, "fail"), ("L5", "warn")])
def test_a_base_model_that_cannot_read_is_caught(verified, verdict):
    check = measure("C11", reader(order=1, verified=verified))
    assert check.verdict == verdict and "random weights, a wrong tokenizer" in check.fix


def test_random_weights_are_caught(folder):
    check = measure("C11", opened(folder("mamba")))
    assert check.verdict == "fail" and "above the unigram" in check.got


def test_ids_of_another_tokenizer_are_caught():
    context = reader()
    shuffle = mx.random.permutation(256, key=mx.random.key(0))
    whole = context.model.forward
    context.model.forward = lambda tokens, *args, **kwargs: whole(shuffle[tokens], *args, **kwargs)
    assert measure("C11", context).verdict == "fail"
