"""A Mamba of 2.77 billion random weights, once through all that a big base model must survive here.

`python -m benchmarks.large_host FOLDER` writes 5.5 GB into FOLDER (bf16, shards), and then, each in a process
of its own so that peaks are its own: verifies the files, loads them and draws 8 tokens, estimates two steps
of the hook graft with one row of 16 tokens, takes them, removes FOLDER, and writes its section of
docs/scale.md. Products in bf16 are slow on a CPU: it takes some minutes. `--blocks`, `--width`:
another size, not written.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import kssm_mlx  # noqa: F401  before mlx, which takes the first BLAS that is there

# isort: split
import mlx.core as mx

from kssm_mlx import environment, files, models
from kssm_mlx.data.tokenizers.plain import IdTokenizer
from kssm_mlx.data.tokens import TokenData, encode_documents
from kssm_mlx.generation import generate
from kssm_mlx.models.base import Trained, flatten
from kssm_mlx.runner.estimate import estimate_training
from kssm_mlx.runner.initial_model import adapt_base
from kssm_mlx.runner.pretrained import open_model
from kssm_mlx.runner.verify_weights import verify_weights
from kssm_mlx.training.budget import measured
from kssm_mlx.training.budget.fit import show_bytes
from kssm_mlx.training.recipe import Recipe, parse
from kssm_mlx.training.recipe_sections import Pretrained
from kssm_mlx.training.state import initial_state
from kssm_mlx.training.step import make_step
from kssm_mlx.weights.naming.configs import to_file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
TITLE, NEXT = "## A base model of 2.77 billion", "## Several processes"
BLOCKS, WIDTH, VOCABULARY = 64, 2560, 50280
SHARD = 2_000_000_000  # bytes
CONTEXT, STEPS, TOKENS = 16, 2, 8


def write(folder: Path, blocks: int = BLOCKS, width: int = WIDTH) -> dict[str, Any]:
    """The files, one tensor computed at a time. What sets the dynamics stays fp32."""
    size = {"hidden_size": width, "num_hidden_layers": blocks}
    config = models.configure("mamba", "l", vocab_size=VOCABULARY, overrides=size)
    outline = models.outline(config)
    names, keeps = list(flatten(outline.parameters()).items()), outline.cast_predicate
    del outline
    folder.mkdir(parents=True)
    shards: list[dict[str, mx.array]] = [{}]
    written: dict[str, str] = {}
    while names:
        name, array = names.pop(0)
        array = array.astype(mx.bfloat16) if keeps(name) else array
        mx.eval(array)
        shards[-1][name] = array
        if not names or sum(a.nbytes for a in shards[-1].values()) > SHARD:
            file = f"model-{len(shards):05d}.safetensors"
            mx.save_safetensors(str(folder / file), shards[-1], {"format": "mlx"})
            written |= dict.fromkeys(shards[-1], file)
            shards[-1].clear()
            shards.append({})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": written}))
    (folder / "config.json").write_text(json.dumps(to_file(config)))
    return {"bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors"))}


def verify(folder: Path) -> dict[str, Any]:
    """`kssm verify-weights --quick`."""
    done = verify_weights(folder, quick=True)
    failed = [f"{c.id}: {c.got}" for c in done.checks if not c.ok]
    if failed:
        raise SystemExit(f"the files do not pass: {'; '.join(failed)}")
    return {"checks": len(done.checks), "tensors": len(done.inspection.container.tensors)}


def speak(folder: Path) -> dict[str, Any]:
    """Load, and draw some tokens."""
    trained = opened(folder)
    began = time.perf_counter()
    (row,) = generate(
        trained.model, IdTokenizer(trained.model.args.vocab_size), "4 8 15 16", max_tokens=TOKENS
    )
    return {"tokens": len(row.ids), "drawing": time.perf_counter() - began, "mlx": mx.get_peak_memory()}


def foretell(folder: Path) -> dict[str, Any]:
    """What `kssm estimate` says of the steps, from one that it takes."""
    recipe, model, data = prepared(folder)
    measured.STEPS = 1
    found = estimate_training("hook graft", recipe, model, data)
    assert found.step is not None
    return {"least": found.sums.least, "trained": found.sums.trained, "peak": found.step.peak}


def train(folder: Path) -> dict[str, Any]:
    """Two steps of the hook graft, as the trainer takes them."""
    recipe, model, data = prepared(folder)
    step, state = make_step(model, recipe.train), initial_state(model, recipe.train)
    tokens = mx.array(data.train.ids[: CONTEXT + 1].astype("int32"))[None]
    mx.reset_peak_memory()
    losses, began = [], time.perf_counter()
    for _ in range(STEPS):
        state, metrics = step(state, tokens, None)
        mx.eval(state, metrics)
        losses.append(metrics["loss"].item())
    seconds = (time.perf_counter() - began) / STEPS
    return {"losses": losses, "step": seconds, "mlx": mx.get_peak_memory()}


def opened(folder: Path) -> Trained:
    return open_model(folder, verify=False)


def prepared(folder: Path) -> tuple[Recipe, Any, TokenData]:
    """The recipe of the steps, the model with its graft, and some ids."""
    recipe = parse(
        {
            "model": {"base": str(folder), "train": "frozen", "graft": {"core": "hook"}},
            "train": {"steps": STEPS, "batch_size": 1, "context": CONTEXT},
        }
    )
    base = opened(folder).model
    ids = encode_documents("train", [" ".join(map(str, range(1000)))], IdTokenizer(base.args.vocab_size))
    data = TokenData(
        folder, ids, ids, IdTokenizer(base.args.vocab_size), {"vocab_size": base.args.vocab_size}
    )
    section = cast(Pretrained, recipe.model)
    return recipe, adapt_base(base, section, 0), data


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    "write": write,
    "verify": verify,
    "speak": speak,
    "foretell": foretell,
    "train": train,
}


def run_stage(stage: str, folder: Path, blocks: int, width: int) -> dict[str, Any]:
    """One stage in a process of its own: what it found, its seconds and the most memory it held."""
    asked = [stage, str(folder), "--blocks", str(blocks), "--width", str(width)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.large_host", "--stage", *asked], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{stage} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def report(stage: str, folder: Path, blocks: int, width: int) -> None:
    """What `run_stage` reads."""
    began = time.perf_counter()
    options = {"blocks": blocks, "width": width} if stage == "write" else {}
    found = STAGES[stage](folder, **options)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = most if sys.platform == "darwin" else 1024 * most
    print(json.dumps({**found, "seconds": time.perf_counter() - began, "rss": most}))


def section(found: dict[str, dict[str, Any]]) -> str:
    """The section of the page."""
    wrote, checked, spoke, told, trained = (found[stage] for stage in STAGES)
    device = environment.device()
    name = device.get("device_name", device["type"])
    rows = [
        ("verify, `--quick`", f"{checked['checks']} checks, {checked['tensors']} tensors", checked, ""),
        (
            "load, and draw 8 tokens",
            f"{spoke['drawing'] / TOKENS:.2g} s a token",
            spoke,
            show_bytes(spoke["mlx"]),
        ),
        (
            f"{STEPS} steps of the hook graft, one row of {CONTEXT} tokens",
            f"{trained['step']:.3g} s a step, {told['trained']:,} parameters trained",
            trained,
            show_bytes(trained["mlx"]),
        ),
    ]
    lines = [
        TITLE,
        "",
        f"Made by `python -m benchmarks.large_host FOLDER` on {name}: a Mamba of 64 blocks and width",
        f"2,560, random weights in bf16, {show_bytes(wrote['bytes'])} in shards, each line in a process of",
        "its own. For the steps `kssm estimate` sums",
        f"{show_bytes(told['least'])} of weights, optimizer and gradients, and predicts a peak of",
        f"{show_bytes(told['peak'])} by MLX's counter.",
        "The cores were shared with other work, so times are upper bounds.",
        "",
        "| what | | time | resident, at most | MLX's counter, at most |",
        "|---|---|---|---|---|",
        *(f"| {w} | {how} | {r['seconds']:.0f} s | {show_bytes(r['rss'])} | {c} |" for w, how, r, c in rows),
    ]
    return "\n".join(lines) + "\n\n"


def replace_section(text: str, new: str) -> str:
    """The page with this section in the place of the one before."""
    if TITLE in text:
        text = text[: text.index(TITLE)] + text[text.index(NEXT) :]
    return text.replace(NEXT, new + NEXT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--width", type=int, default=WIDTH)
    asked = parser.parse_args()
    size = asked.blocks, asked.width
    if asked.stage:
        report(asked.stage, asked.folder, *size)
        return
    if asked.folder.exists():
        parser.error(f"{asked.folder} exists; give a folder that is not there, which is removed at the end")
    found = {}
    try:
        for stage in STAGES:
            found[stage] = run_stage(stage, asked.folder, *size)
            print(stage, json.dumps(found[stage]), flush=True)
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)
    if size == (BLOCKS, WIDTH):
        files.replace(PAGE, replace_section(PAGE.read_text("utf-8"), section(found)))


if __name__ == "__main__":
    main()
