"""The same models by others: mlx-lm, and with torch transformers, mamba.py and `rwkv`. Own weights.

What they need is no requirement of ours, so types are checked without it.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from kssm_mlx import _blas
from kssm_mlx.bench.measure import Contender, arrays
from kssm_mlx.bench.ours import Shape

MLX_LM = ("mamba", "mamba2", "rwkv7")
TRANSFORMERS = ("mamba", "rwkv")


def mlx_lm(family: str, shape: Shape) -> nn.Module:
    """mlx-lm's model, freshly initialised."""
    from kssm_mlx.integrations.mlx_lm import peer

    D, V, L = shape.width, shape.vocabulary, shape.layers
    common = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L}
    convolution = {"conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "intermediate_size": 2 * D}
    heads = {"num_heads": D // 32, "head_dim": 64, "n_groups": 1, "layer_norm_epsilon": 1e-5}
    own = {
        "mamba": {**convolution, "state_size": 16, "time_step_rank": D // 16},
        "mamba2": {**convolution, **heads, "state_size": 64, "time_step_rank": "auto"},
        "rwkv7": {"intermediate_size": 4 * D, "norm_eps": 1e-5, "head_dim": 64, **_RANKS},
    }[family]
    if family == "mamba2":
        own |= {"tie_word_embeddings": True, "time_step_limit": (0.0, float("inf"))}
    return peer(family, {**common, **own})


_RANKS = {"a_low_rank_dim": 32, "v_low_rank_dim": 32, "gate_low_rank_dim": 64, "decay_low_rank_dim": 32}


def mlx_prefill(model: nn.Module, tokens: mx.array) -> Contender:
    return arrays(model, tokens)._replace(eager=True)


def mlx_training(model: nn.Module, tokens: mx.array) -> Contender:
    """A step as in mlx-lm's trainer, not compiled: loops over time take minutes to compile, for no gain."""
    optimizer = optim.AdamW(learning_rate=1e-4)
    mean = lambda m, t: nn.losses.cross_entropy(m(t[:, :-1]), t[:, 1:], reduction="mean")  # noqa: E731
    loss_and_gradient = nn.value_and_grad(model, mean)

    def run():
        loss, gradient = loss_and_gradient(model, tokens)
        optimizer.update(model, gradient)
        mx.eval(loss, model.parameters(), optimizer.state)

    return Contender(run, eager=True)


def mlx_decoding(model: Any, batch: int, count: int) -> Contender:
    """As mlx-lm's `generate_step`: eager, the next token started before the last one is read."""

    def run():
        cache = model.make_cache()
        token = model(mx.zeros((batch, 8), mx.int32), cache)[:, -1:].argmax(-1)
        for _ in range(count):
            token = model(token, cache)[:, -1:].argmax(-1)
            mx.async_eval(token)
        mx.eval(token)

    return Contender(run, eager=True)


def has_transformers() -> bool:
    return find_spec("torch") is not None and find_spec("transformers") is not None


def has_associative_scan() -> bool:
    """Without it, compiling would unroll the loop over time."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers as hf

    return torch.__version__ >= "2.9" and hasattr(hf.MambaConfig(), "use_associative_scan")


def transformers(family: str, shape: Shape, *, scan: str = "") -> Any:
    """Hugging Face's model. scan: of its Mamba, "mambapy", "associative", or empty for a loop over time."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers as hf

    hf.logging.set_verbosity_error()
    _same_threads(torch)
    torch.manual_seed(0)
    sizes = shape.vocabulary, shape.width, shape.layers
    common: dict[str, Any] = dict(zip(("vocab_size", "hidden_size", "num_hidden_layers"), sizes))
    if family == "rwkv":
        return hf.RwkvForCausalLM(hf.RwkvConfig(**common, context_length=1 << 16))
    model = hf.MambaForCausalLM(hf.MambaConfig(**common, state_size=16, use_mambapy=scan == "mambapy"))
    if scan == "associative":
        _compile(model.backbone.layers, torch)
    return model


def _compile(layers: Any, torch: Any) -> None:
    """The associative scan runs in compiled code only. One layer serves all: the whole model takes four times
    as long to compile and is no faster. Not for any T: what another case compiled is forgotten first.
    """
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")
    torch.compiler.reset()
    for layer in layers:
        layer.compile(dynamic=False)


def mamba_py(shape: Shape) -> Any:
    """mamba.py's layers with its parallel scan, between our own embedding and head, which share weights."""
    import torch  # pyright: ignore[reportMissingImports]
    from mambapy.mamba import Mamba, MambaConfig, RMSNorm  # pyright: ignore[reportMissingImports]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(shape.vocabulary, shape.width)
            self.layers = Mamba(MambaConfig(d_model=shape.width, n_layers=shape.layers))
            self.norm = RMSNorm(shape.width)

        def forward(self, ids, use_cache=False):
            h = self.norm(self.layers(self.embedding(ids)))
            return SimpleNamespace(logits=h @ self.embedding.weight.T)

    _same_threads(torch)
    torch.manual_seed(0)
    return Model()


def _same_threads(torch: Any) -> None:
    """As many as OpenBLAS was told to use; otherwise torch's own choice, one for each core."""
    told = [os.environ[name] for name in _blas.THREAD_VARIABLES if name in os.environ]
    if told:
        torch.set_num_threads(int(told[0]))


def has_rwkv() -> bool:
    return find_spec("torch") is not None and find_spec("rwkv") is not None


def rwkv_prefill(shape: Shape, tokens: mx.array) -> Contender:
    """The `rwkv` package on a random RWKV-7. Shapes: tokens [1, T]."""
    os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0", RWKV_JIT_ON="1")
    import torch  # pyright: ignore[reportMissingImports]
    from rwkv.model import RWKV  # pyright: ignore[reportMissingImports]

    _same_threads(torch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save(_rwkv7_weights(shape, torch), f"{path}.pth")
        model = RWKV(model=str(path), strategy="cpu fp32")
    ids = tokens[0].tolist()
    return Contender(lambda: model.forward(ids, None, full_output=True), mlx=False, peak=torch_peak)


def _rwkv7_weights(shape: Shape, torch: Any) -> dict[str, Any]:
    """Tensors of the shapes that the package reads, under its names."""
    D, V, F, K = shape.width, shape.vocabulary, 4 * shape.width, 64
    ranks = {"w": 32, "a": 32, "v": 32, "g": 64}
    found = {"emb.weight": (V, D), "head.weight": (V, D), "ln_out.weight": (D,), "ln_out.bias": (D,)}
    for i in range(shape.layers):
        block, norms = f"blocks.{i}", ("ln1", "ln2", *(("ln0",) if i == 0 else ()))
        found |= {f"{block}.{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
        found |= {f"{block}.att.x_{name}": (1, 1, D) for name in "rwkvag"}
        found |= {f"{block}.att.{name}": (1, 1, D) for name in ("k_k", "k_a", "w0", "a0", "v0")}
        found |= {f"{block}.att.{name}1": (D, rank) for name, rank in ranks.items()}
        found |= {f"{block}.att.{name}2": (rank, D) for name, rank in ranks.items()}
        found |= {f"{block}.att.r_k": (D // K, K), f"{block}.ffn.x_k": (1, 1, D)}
        found |= {f"{block}.att.{n}.weight": (D, D) for n in ("receptance", "key", "value", "output")}
        found |= {f"{block}.att.ln_x.{part}": (D,) for part in ("weight", "bias")}
        found |= {f"{block}.ffn.key.weight": (F, D), f"{block}.ffn.value.weight": (D, F)}
    return {name: 0.02 * torch.randn(size) for name, size in found.items()}


def torch_prefill(model: Any, tokens: mx.array) -> Contender:
    import torch  # pyright: ignore[reportMissingImports]

    ids, model = torch.from_numpy(np.array(tokens)).long(), model.eval()

    def run():
        with torch.no_grad():
            model(ids, use_cache=False)

    return Contender(run, mlx=False, eager=True, peak=torch_peak)


def torch_training(model: Any, tokens: mx.array) -> Contender:
    import torch  # pyright: ignore[reportMissingImports]

    ids, model = torch.from_numpy(np.array(tokens)).long(), model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run():
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(run, mlx=False, eager=True, peak=torch_peak)


def torch_peak(run: Callable[[], Any]) -> int:
    """The most bytes of tensors at a time while `run` runs, as MLX counts its arrays. Not the resident set:
    glibc keeps freed memory here (`_memory.py`), and torch's then reads up to twice what it holds.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.autograd.profiler import profile  # pyright: ignore[reportMissingImports]

    with profile(use_cpu=True, profile_memory=True) as seen:
        run()
    changes = [e for e in seen.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns()))
    return max(held, default=0)


def contenders(
    family: str,
    shape: Shape,
    by_mlx: Callable[[nn.Module], Contender],
    by_torch: Callable[[Any], Contender],
    *,
    torch: bool,
    plain: bool,
) -> dict[str, Contender]:
    """Every peer that is there for `family`. torch: those in torch; plain: transformers' loop over time."""
    found = {}
    if family in MLX_LM:
        found["mlx-lm"] = by_mlx(mlx_lm(family, shape))
    if not (torch and family in TRANSFORMERS and has_transformers()):
        return found
    if plain or family == "rwkv":
        found["transformers"] = by_torch(transformers(family, shape))
    if family == "mamba" and has_associative_scan():
        compiled = by_torch(transformers(family, shape, scan="associative"))
        found["transformers, associative scan"] = compiled._replace(eager=False)
    if family == "mamba" and find_spec("mambapy"):
        found["transformers, mambapy"] = by_torch(transformers(family, shape, scan="mambapy"))
        found["mamba.py"] = by_torch(mamba_py(shape))
    return found
