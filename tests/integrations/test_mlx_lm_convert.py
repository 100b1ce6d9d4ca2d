"""mlx-lm's own converter takes our folders, and we take what it makes, also where modules are not alike."""

import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from kssm_mlx.runner.convert import export
from kssm_mlx.runner.pretrained import open_model
from tests.support import weight_files
from tests.support.tokenizer_kinds import byte_level

WIDE = {"vocab_size": 320, "hidden_size": 64}
FAMILIES = {
    "mamba": {**WIDE, "state_size": 16},
    "mamba2": {**WIDE, "num_heads": 8, "head_dim": 16, "state_size": 16},
}
MXFP4 = {"mode": "mxfp4", "bits": 4, "group_size": 32}
# What is left as it is, or quantised in another mode.
UNLIKE = {
    "a block left": lambda path: "layers.1." not in path,
    "a module left": lambda path: not path.endswith("layers.1.mixer.out_proj"),
    "another mode": lambda path: MXFP4 if path.endswith("layers.1.mixer.out_proj") else True,
    "other bits": lambda path: {"bits": 8, "group_size": 32} if "layers.0." in path else True,
}


@pytest.mark.parametrize("unlike", UNLIKE)
@pytest.mark.parametrize(("family", "format"), [("mamba", "hf"), ("mamba2", "hf"), ("mamba2", "mlx-lm")])
def test_mixed_quantisation(tmp_path, capfd, family, format, unlike):
    source = weight_files.folder(tmp_path / "m", family, **FAMILIES[family])
    byte_level().backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    folder = export(source, tmp_path / "out", format=format, verify=False)

    def wanted(path, module, *_):
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0
        return fits and UNLIKE[unlike](path)

    options = {"quantize": True, "q_bits": 4, "q_group_size": 32, "quant_predicate": wanted}
    mlx_lm.convert(str(folder), str(tmp_path / "q"), trust_remote_code=True, **options)
    theirs, _ = mlx_lm.load(str(tmp_path / "q"), trust_remote_code=True)
    ours = open_model(tmp_path / "q").model
    tokens = mx.array([[1, 2, 3, 4]])
    np.testing.assert_allclose(np.array(ours(tokens)), np.array(theirs(tokens)), atol=1e-4)
    capfd.readouterr()  # the converter's report
