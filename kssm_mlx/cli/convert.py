"""`kssm convert`: weights in 4 or 8 bits, and what that costs in nats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.errors import DataError


def convert(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, a folder or a repository.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not be in use.")],
    bits: Annotated[int, typer.Option(help="4 or 8 per weight.")] = 4,
    mode: Annotated[str, typer.Option(help="affine, mxfp4 or mxfp8.")] = "affine",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale.  [default: 64; 32 for mxfp4 and mxfp8]")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Score on this file.  [default: English from the package]")
    ] = None,
    tokenizer: Annotated[bool, typer.Option(help="Write the tokenizer's files as well.")] = True,
    verify: Annotated[bool, typer.Option(help="Refuse weights that fail their checks.")] = True,
) -> None:
    """Quantise a model.

    Wide projections and embeddings are quantised; decays, norms, convolutions and the small projections that
    set the dynamics stay as they are. The loss before and after is printed.
    """
    from kssm_mlx.cli.tables import console, show, table, warn_unverified
    from kssm_mlx.runner.convert import convert as run

    done = run(
        source,
        folder,
        bits=bits,
        mode=mode,
        group_size=group_size,
        text=_read(text) if text else None,
        tokenizer=tokenizer,
        verify=verify,
        on_open=warn_unverified,
    )
    show(console(), table(("", "before", "after"), _rows(done), str(folder)))


def _rows(done: Any) -> list[tuple[str, str, str]]:
    before, after = (f"{size / 1e6:,.2f} MB" for size in done.bytes)
    losses = (
        f"not measured: {loss.reason}" if loss.nats is None else f"{loss.nats:.4f}" for loss in done.losses
    )
    nats_before, nats_after = losses
    return [
        ("size", before, after),
        ("quantised modules", "0", str(len(done.modules))),
        ("nats/token", nats_before, nats_after),
    ]


def _read(path: Path) -> str:
    from kssm_mlx.data.corpora.text_files import read_text

    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} has no text to score on; leave --text out for the English of the package")
    return text
