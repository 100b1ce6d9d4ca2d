"""`kssm verify-weights`: are the files on disk the weights of a model that works?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kssm_mlx.errors import ConfigError, nearest


def verify_weights(
    source: Annotated[str, typer.Argument(help="A folder, a weight file, or owner/name on the hub.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Read the files only (L0 to L3); do not run the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Compare with this manifest.  [default: the shipped one]")
    ] = None,
    write_manifest: Annotated[
        Path | None, typer.Option(help="Write the digests, and what was measured, to this TOML file.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Judge it on this text instead of English.")] = None,
    only: Annotated[str | None, typer.Option(metavar="L1,W11", help="Show these layers or checks.")] = None,
) -> None:
    """Check weights in layers: container, names, digests, values, arithmetic, behaviour.

    Exit code 0 if every check passed, 1 if one failed, 2 for unusable input.
    """
    from kssm_mlx.cli.meter import Bytes
    from kssm_mlx.data.corpora import read_text
    from kssm_mlx.experiments import verification

    judged_on = read_text(text) if text else None
    with Bytes(quiet=as_json) as meter:
        done = verification.verify_weights(
            source, quick=quick, manifest=manifest, text=judged_on, meter=meter
        )
    if write_manifest:
        verification.record(done, write_manifest, text=judged_on)
    shown = _chosen([c.to_json() for c in done.checks], only)
    _show(shown, source, done, as_json)
    raise typer.Exit(0 if all(c["ok"] for c in shown) else 1)


def _chosen(checks: list[dict[str, Any]], only: str | None) -> list[dict[str, Any]]:
    """The checks of the given layers and ids. Raises: ConfigError for one that does not exist."""
    if not only:
        return checks
    wanted = only.split(",")
    known = [c["id"] for c in checks] + [c["level"] for c in checks]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--only {name}: no such layer or check here{nearest(name, known)}")
    return [c for c in checks if c["id"] in wanted or c["level"] in wanted]


def _show(checks: list[dict[str, Any]], source: str, done: Any, as_json: bool) -> None:
    if as_json:
        import json

        revision = done.source.revision
        found = {"source": source, "revision": revision, "root": done.inspection.root, "checks": checks}
        return typer.echo(json.dumps(found, indent=2))
    from kssm_mlx.cli.tables import checks_table, console, show_fixes

    screen = console()
    for layer in dict.fromkeys(c["level"] for c in checks):
        screen.print(checks_table([c for c in checks if c["level"] == layer], f"{layer}  {source}"))
    show_fixes(screen, checks)
    if done.inspection.root:
        screen.print(f"root {done.inspection.root}", highlight=False)
