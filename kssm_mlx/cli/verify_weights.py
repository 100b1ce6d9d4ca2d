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
    headers_only: Annotated[
        bool,
        typer.Option(
            "--headers-only",
            help="Ask the hub for headers alone (L0, L1): names, shapes, sizes, before a download.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Compare with this manifest.  [default: the shipped one]")
    ] = None,
    write_manifest: Annotated[
        Path | None, typer.Option(help="Write the digests, and what was measured, to this TOML file.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Judge it on this text instead of English.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="L1,W11", help="Show these layers or checks only.")
    ] = None,
) -> None:
    """Check weights in layers: container, names, digests, values, arithmetic, behaviour.

    Exit code 0 if every check passed, 1 if one failed, shown or not, 2 for unusable input.
    """
    from kssm_mlx.data.corpora.text_files import read_text
    from kssm_mlx.runner import verify_weights
    from kssm_mlx.terminal import Bytes

    if headers_only:
        return _show_headers(source, only, as_json)
    judged_on = read_text(text) if text else None
    with Bytes(quiet=as_json) as meter:
        done = verify_weights.verify_weights(
            source, quick=quick, manifest=manifest, text=judged_on, meter=meter
        )
    if write_manifest:
        verify_weights.record_manifest(done, write_manifest, text=judged_on)
    shown = _select_checks([c.to_json() for c in done.checks], only)
    _show(shown, source, done, as_json)
    if write_manifest and not as_json:
        typer.echo(f"written: {write_manifest}")
    raise typer.Exit(0 if done.ok else 1)


def _show_headers(source: str, only: str | None, as_json: bool) -> None:
    from kssm_mlx.runner.verify_weights import verify_headers
    from kssm_mlx.training.budget.fit import show_bytes

    found = verify_headers(source)
    done = found.verification
    shown = _select_checks([c.to_json() for c in done.checks], only)
    sizes = {"bytes": found.outline.size, "memory": found.memory, "received": found.outline.received}
    if as_json:
        _show(shown, source, done, as_json, {**sizes, "ends": found.ends, "ends_agree": found.ends_agree})
    else:
        _show(shown, source, done, as_json)
        ends = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in found.ends.items())
        lines = [
            f"{show_bytes(found.outline.size)} of weights to download, {show_bytes(found.memory)} of memory"
            f" as they are stored; {show_bytes(found.outline.received)} were received for this",
            f"ends of text: {ends or 'none named'}" + ("" if found.ends_agree else ": they do not agree"),
        ]
        typer.echo("\n".join(lines))
    raise typer.Exit(0 if done.ok else 1)


def _select_checks(checks: list[dict[str, Any]], only: str | None) -> list[dict[str, Any]]:
    """The checks of the given layers and ids, in capitals or not.

    Raises: ConfigError for one that does not exist.
    """
    if not only:
        return checks
    wanted = [name.strip().upper() for name in only.split(",")]
    known = [c["id"] for c in checks] + [c["level"] for c in checks]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--only {name}: no such layer or check here{nearest(name, known)}")
    return [c for c in checks if c["id"] in wanted or c["level"] in wanted]


def _show(
    checks: list[dict[str, Any]], source: str, done: Any, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    if as_json:
        import json

        revision = done.source.revision
        found = {
            "source": source,
            "revision": revision,
            "root": done.inspection.root,
            "ok": done.ok,
            "checks": checks,
            **(more or {}),
        }
        return typer.echo(json.dumps(found, indent=2))
    from kssm_mlx.checks.core.registry import WEIGHT_LEVELS
    from kssm_mlx.cli.tables import console, layers_table, show, show_fixes

    screen = console()
    present = {c["level"] for c in checks}
    layers = {
        f"{layer} {name}": [c for c in checks if c["level"] == layer]
        for layer, name in WEIGHT_LEVELS.items()
        if layer in present
    }
    show(screen, layers_table(layers, source))
    show_fixes(screen, checks)
    if done.inspection.root:
        screen.print(f"root {done.inspection.root}", soft_wrap=True)
    screen.print(f"{source}: {_conclude(done)}", soft_wrap=True, markup=False)


def _conclude(done: Any) -> str:
    """What it comes to, over all checks, whichever are shown."""
    failed = [c.id for c in done.checks if not c.ok]
    if failed:
        return f"failed {', '.join(failed)}"
    reached = max(c.level for c in done.checks)
    if done.inspection.root is None:
        return "passed L0 and L1, by headers; no number was looked at"
    if reached != "L5":
        return f"passed L0 to {reached}; without --quick it is run and judged as well"
    if not done.speaks:
        return "passed, but was not seen to read a text (W24), so kssm train does not take it as a base model"
    return "passed; kssm train takes it as a base model"
