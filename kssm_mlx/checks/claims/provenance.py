"""Can a result be traced to the code, the data, the tokenizer and the configuration that gave it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kssm_mlx.checks.core.model_size import count_parameters
from kssm_mlx.checks.core.registry import Check, Context, check, require_value, verdict
from kssm_mlx.digest import root_digest, tensor_digest
from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs.layout import CHECKPOINTS, list_checkpoints
from kssm_mlx.training.checkpoints import checkpoint, identity


@check(
    "C36",
    level="G",
    title="the result is of this run",
    source="docs/background/k-ssm.md#results-under-another-name",
)
def result_is_traceable(ctx: Context) -> Check:
    """Of each run, what manifest.json and the newest checkpoint say against what there is: digests of corpus,
    tokenizer and token files; vocabulary; number of parameters, all and trained; digest of the weights before
    step 1, built anew from configuration and seed; recipe and configuration by hash; the base model's digest;
    the commit of the code.

    Threshold: exact. Warns where the code had changes that no commit has, or is of no commit.
    Caught: results of v1 kept under kssm_v2; "84K parameters" for 48,833.
    Sabotage: token files, a recipe, a count or a checkpoint of another run.
    """
    runs = [*(ctx.runs or [ctx]), *(ctx.baseline or ())]
    for run in runs:
        run.need("model", "recipe", "data", "initial", "run_folder", "manifest")
    wrong = [phrase for run in runs for phrase in _differences(run)]
    loose = [f"{run.run_folder.name}: {phrase}" for run in runs if (phrase := _loose_code(_manifest(run)))]
    commit = _manifest(runs[0]).get("environment", {}).get("commit") or ""
    return verdict(
        "C36",
        "fail" if wrong else "warn" if loose else "pass",
        "; ".join(wrong[:3] or loose[:3]) or f"{len(runs)} of {len(runs)} as recorded, commit {commit[:12]}",
        "code, data, tokenizer, configuration and counts as recorded",
        "report the run that made the number; commit the code before the run that is to be reported",
        wrong=wrong,
        loose=loose,
    )


def _differences(run: Context) -> list[str]:
    """One phrase for each thing that is not as it was recorded."""
    recorded, now = _read_recorded(run), _digest_now(run)
    name = run.run_folder.name
    return [
        f"{name}: {key} {_shorten_value(recorded[key])} recorded, is {_shorten_value(now[key])}"
        for key in now
        if key in recorded and recorded[key] != now[key]
    ]


def _read_recorded(run: Context) -> dict[str, Any]:
    manifest = _manifest(run)
    index = manifest["data"]
    return {
        **_describe_data(index),
        "parameters": manifest["parameters"],
        "trained parameters": manifest["trained_parameters"],
        "weights before step 1": manifest["initial_digest"],
        "base model": (manifest["host"] or {}).get("root"),
        **_read_newest_step(run),
    }


def _manifest(run: Context) -> dict[str, Any]:
    return require_value(run.manifest, "manifest")


def _digest_now(run: Context) -> dict[str, Any]:
    initial = require_value(run.initial, "initial")
    own = identity.describe_identity(run.model, run.recipe, run.data)
    return {
        **_describe_data(run.data.index),
        "parameters": count_parameters(run.model),
        "trained parameters": sum(array.size for array in initial.values()),
        "weights before step 1": root_digest({n: tensor_digest(a) for n, a in initial.items()}),
        "base model": run.base_digest,
        "recipe and configuration": own["config_hash"],
        "tokenizer of the checkpoint": own["tokenizer"]["digest"],
    }


def _describe_data(index: dict[str, Any]) -> dict[str, Any]:
    files = {f"file {name}": entry["sha256"] for name, entry in index["files"].items()}
    return {
        "corpus": index["corpus"]["digest"],
        "tokenizer": index["tokenizer"]["digest"],
        "vocabulary": index["vocab_size"],
        **files,
    }


def _read_newest_step(run: Context) -> dict[str, Any]:
    """What the newest checkpoint says it is of; nothing where there is none."""
    there = list(list_checkpoints(Path(run.run_folder) / CHECKPOINTS).values())
    if not there:
        return {}
    try:
        own = checkpoint.load(there[-1], stems=[]).state["identity"]
    except CheckpointError as e:
        return {"recipe and configuration": str(e)}
    return {
        "recipe and configuration": own["config_hash"],
        "tokenizer of the checkpoint": own["tokenizer"]["digest"],
    }


def _loose_code(manifest: dict[str, Any]) -> str:
    commit = manifest["environment"]["commit"]
    if commit is None:
        return f"code of no commit, version {manifest['environment']['kssm_mlx']}"
    return "code with changes that are in no commit" if commit.endswith("+changes") else ""


def _shorten_value(value: Any) -> str:
    return value[:12] if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else str(value)
