"""`kssm export`: a folder that mlx-lm or transformers runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, a folder or a repository.")],
    folder: Annotated[Path, typer.Argument(help="The folder or file to write; it must not be in use.")],
    format: Annotated[
        str, typer.Option(help="mlx-lm; hf for transformers; adapters or state for what was trained alone.")
    ] = "mlx-lm",
    tokenizer: Annotated[bool, typer.Option(help="Write the tokenizer's files as well.")] = True,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
) -> None:
    """Write a model for other tools.

    mlx-lm runs the folder with --trust-remote-code where kssm-mlx is installed. transformers loads Mamba,
    FalconMamba, Mamba-2 and RWKV-4. Adapters are fused into their base model. Of a run with
    model.train = "state" the state is a small file for its base model: kssm generate MODEL --state-in FILE.
    """
    from kssm_mlx.cli.tables import warn_unverified
    from kssm_mlx.runner.convert import export as write

    write(source, folder, format=format, tokenizer=tokenizer, verify=verify, on_open=warn_unverified)
    run = {
        "adapters": f"mlx_lm.generate --adapter-path {folder} --model MODEL ..., the base model of {source}",
        "state": f"kssm generate MODEL --state-in {folder}, MODEL the base model of {source}",
        "mlx-lm": f"mlx_lm.generate --model {folder} --trust-remote-code --prompt ...",
        "hf": f"transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})",
    }
    typer.echo(f"written: {folder}\n{run[format]}")
