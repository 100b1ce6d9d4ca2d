"""A run carried to another place and back: checkpoints whole or not at all, verified where they arrive.

    1  recipe, manifest, data, metrics, samples, checks, pictures      rsync, file by file
    2  each checkpoint that is not there yet, into checkpoints/.sync   rsync; a broken one goes on next time
       compared with its manifest by sha256, on the machine it arrived at, then renamed into its place
    3  LATEST and BEST, as they were when it began

A target that is another run, is ahead of the source, or is being trained is refused before anything is
copied. Nothing is deleted there but what a new checkpoint of the same name replaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kssm_mlx.digest import file_digest
from kssm_mlx.errors import CheckpointError, ConfigError
from kssm_mlx.runs.layout import BEST, CHECKPOINTS, LATEST, RECIPE, is_step_name
from kssm_mlx.runs.remote import Place, copy, quote_path, shell
from kssm_mlx.training.checkpoints import manifest

STAGING = ".sync"
NOT_COPIED = (f"--exclude=/{CHECKPOINTS}", "--exclude=/run.lock", "--exclude=.*")
_FILE_NAME = re.compile(r"\w[\w.-]*")
# macOS has shasum, Linux has sha256sum; both read the same lists.
_SUM = 'sum() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }\n'
_SURVEY = f"""{_SUM}
digest() {{ sum < "$1" | cut -d' ' -f1; }}
if [ -f {RECIPE} ]; then echo "recipe {RECIPE} $(digest {RECIPE})"; fi
if [ -f run.lock ]; then
  pid=$(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p' run.lock)
  if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then echo "held run.lock $pid"; fi
fi
if [ -d {CHECKPOINTS} ]; then cd {CHECKPOINTS}; else exit 0; fi
for step in step_*; do
  if [ -f "$step/{manifest.NAME}" ]; then echo "checkpoint $step $(digest "$step/{manifest.NAME}")"; fi
done
for name in {LATEST} {BEST}; do
  if [ -f $name ]; then echo "pointer $name $(cat $name)"; fi
done
"""


@dataclass(frozen=True)
class Survey:
    """What lies in a place. checkpoints: name -> digest of its manifest; pointers: LATEST, BEST -> name."""

    recipe: str = ""
    held: str = ""
    checkpoints: dict[str, str] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)

    @property
    def latest(self) -> str:
        return max(self.checkpoints, default="")


def survey(place: Place) -> Survey:
    """Raises: CheckpointError for a folder that is not there or a machine that does not answer."""
    found: dict[str, dict[str, str]] = {"recipe": {}, "held": {}, "checkpoint": {}, "pointer": {}}
    for line in shell(place, _SURVEY).splitlines():
        kind, name, value = (*line.split(), "", "", "")[:3]
        if kind in found and value:
            found[kind][name] = value
    return Survey(
        recipe=found["recipe"].get(RECIPE, ""),
        held=found["held"].get("run.lock", ""),
        checkpoints={name: d for name, d in found["checkpoint"].items() if is_step_name(name)},
        pointers={name: to for name, to in found["pointer"].items() if is_step_name(to)},
    )


def sync(source: Place, target: Place, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Bring `target` to where `source` is; returns the names of the checkpoints that were copied.

    Raises: ConfigError for two other machines; CheckpointError for what is no run, another run, ahead, in
        use, out of reach, or arrived damaged, which is then not there.
    """
    if source.host and target.host:
        raise ConfigError(f"{source} and {target} are both elsewhere; run kssm sync on one of the two")
    here = survey(source)
    if not here.recipe:
        raise CheckpointError(f"{source} is not a run folder: it has no {RECIPE}, which kssm train writes")
    _make_target(target)
    there = survey(target)
    _refuse(source, here, target, there)
    copy(source, target, NOT_COPIED)
    wanted = [
        name for name in sorted(here.checkpoints) if here.checkpoints[name] != there.checkpoints.get(name)
    ]
    if not here.checkpoints:
        say(f"{source} has no checkpoint yet; its recipe and data are copied")
    for name in wanted:
        say(f"{name} ...")
        _carry(source, target, name)
    _point(target, here)
    return wanted


def _make_target(target: Place) -> None:
    """The folder, if it is not there. Raises: CheckpointError for one that holds anything but a run."""
    folder, staging = quote_path(target.path), quote_path(f"{target.path}/{CHECKPOINTS}/{STAGING}")
    # A copy that broke off before the recipe had arrived has a staging folder.
    script = (
        f"if [ -d {folder} ] && [ ! -f {folder}/{RECIPE} ] && [ ! -d {staging} ]; then\n"
        f"  ls -A {folder} | head -n 1 | grep . && exit 0\nfi\nmkdir -p {staging}\n"
    )
    said = shell(Place(target.host, "."), script, about=target)
    if said.strip():
        raise CheckpointError(
            f"{target} is no run: it has {said.strip()!a} and no {RECIPE}; name a new or an empty folder"
        )


def _refuse(source: Place, here: Survey, target: Place, there: Survey) -> None:
    if there.recipe not in ("", here.recipe):
        raise CheckpointError(
            f"{target} is another run than {source}: their {RECIPE} differ; name a new folder"
        )
    if there.held:
        raise CheckpointError(f"{target} is in use by process {there.held}; wait for it, or stop it")
    if there.latest > here.latest:
        raise CheckpointError(
            f"{target} is ahead: it has {there.latest}, {source} has {here.latest or 'no checkpoint'}; "
            "sync the other way round"
        )


def _carry(source: Place, target: Place, name: str) -> None:
    """One checkpoint: staged, verified, put in its place."""
    origin, folder = source / CHECKPOINTS / name, target / CHECKPOINTS
    staged = folder / STAGING / name
    copy(origin, staged, ["--delete"])
    own = Path((staged if source.host else origin).path)
    expected = _expected_files(own)
    sums = "".join(f"{digest}  {file}\n" for file, digest in expected.items())
    verify = (
        f"cd {quote_path(f'{STAGING}/{name}')}\n"
        f"if [ $(ls -A | wc -l) -ne {len(expected)} ]; then echo 'it has other files'; exit 1; fi\n"
        f"sum -c - <<'END' | grep -v ': OK$' || true\n{sums}END\n"
        f"sum -c - >/dev/null 2>&1 <<'END'\n{sums}END\n"
    )
    try:
        shell(folder, _SUM + verify)
    except CheckpointError as e:
        shell(folder, f"rm -rf {STAGING}/{name}")  # rsync would take its size and date for the right one
        raise CheckpointError(
            f"{name} arrived damaged and was not put in place ({e}); sync again, and if "
            "that does not help it is damaged where it comes from"
        ) from None
    shell(
        folder,
        f"if [ -e {name} ]; then mv {name} {STAGING}/{name}.old; fi\n"
        f"mv {STAGING}/{name} {name}\nrm -rf {STAGING}/{name}.old\n",
    )


def _expected_files(folder: Path) -> dict[str, str]:
    """File -> sha256 of a checkpoint, by its manifest. Raises: CheckpointError for one that is not intact."""
    try:
        described = manifest.read_manifest(folder)["files"]
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{folder} has no intact manifest ({e}); it is not copied") from None
    if odd := [name for name in described if not _FILE_NAME.fullmatch(name)]:
        raise CheckpointError(f"{folder} names a file {odd[0]!a}; it is not copied")
    return {**described, manifest.NAME: file_digest(folder / manifest.NAME)}


def _point(target: Place, here: Survey) -> None:
    """LATEST and BEST of the source, each in one step."""
    lines = [
        f"echo {to} > {STAGING}/{name} && mv -f {STAGING}/{name} {name}\n"
        for name, to in here.pointers.items()
        if to in here.checkpoints
    ]
    shell(target / CHECKPOINTS, "".join([*lines, f"rmdir {STAGING} 2>/dev/null || true\n"]))
