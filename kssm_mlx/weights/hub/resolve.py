"""Where weights are: a path on this machine, or `owner/name[/FILE][@revision]` on the Hugging Face hub.

A revision is resolved to a commit, which is what gets recorded, and a commit that is complete in the cache is
used without asking the hub. Offline, the cache is all there is, and what it lacks is named.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.parsing import parse_json
from kssm_mlx.weights import side_files
from kssm_mlx.weights.hub.download import Promise, fetch

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_WEIGHTS = (".safetensors", ".pth", ".bin", ".pt")


@dataclass(frozen=True)
class Resolved:
    """Files on this machine and where they came from.

    path: a folder or a single weight file; repo and revision (a commit) of what came from the hub; sha256:
    file name -> the digest the hub promises for it (files in Git LFS only, which weights are).
    """

    path: Path
    repo: str | None = None
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    repo: str
    file: str | None
    revision: str


class Unreachable(Exception):
    """The hub gave no answer; the message says why."""


def resolve(source: str | Path, revision: str | None = None) -> Resolved:
    """The files of `source`: a path stays what it is, a repository is downloaded unless the cache has it.

    revision: a branch, a tag or a commit; by default the one the shipped manifest pins, else the newest.
    Raises: ConfigError for a source that is neither, a repository or revision the hub does not have or does
    not give, what is missing while offline, and a full disk; WeightMismatch for a damaged download.
    """
    local = Path(source).expanduser()
    if local.exists():
        if revision:
            raise ConfigError(
                f"{source} is a path on this machine; a revision ({revision}) is of a repository"
            )
        return Resolved(local)
    asked = parse_reference(str(source), revision)
    if _COMMIT.fullmatch(asked.revision) and not _list_missing(_snapshot(asked.repo, asked.revision), asked):
        return _resolve_snapshot(asked, asked.revision)
    try:
        with explain_errors(asked):
            return _resolve_snapshot(asked, _download_files(asked))
    except Unreachable as e:
        return _resolve_snapshot(asked, _cached_commit(asked, str(e)))


def choose(names: Iterable[str], file: str | None = None) -> list[str]:
    """What of a repository's files makes a model: one set of weights (safetensors first) and its description.

    file: the one that is meant, in a repository of several models or of no model.
    Raises: ConfigError if there are no weights, or several without one that goes by the usual name.
    """
    names = set(names)
    beside = [n for n in side_files.NAMES if n in names]
    if file is not None:
        if file not in names:
            raise ConfigError(f"the repository has no file {file!r}{nearest(file, names)}")
        return list(dict.fromkeys([*beside, file]))
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, shard = f"{stem}.{ending}.index.json", re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
        if index in names:
            return [*beside, index, *sorted(n for n in names if shard.fullmatch(n))]
        if f"{stem}.{ending}" in names:
            return [*beside, f"{stem}.{ending}"]
    others = sorted(n for n in names if n.endswith(_WEIGHTS) and "/" not in n)
    if len(others) == 1:
        return [*beside, *others]
    found = f"{len(others)} weight files ({', '.join(others[:4])}, ...)" if others else "no weight file"
    raise ConfigError(f"the repository has {found}; name the one you mean: owner/name/FILE")


def parse_reference(source: str, revision: str | None) -> Asked:
    match = _REPOSITORY.fullmatch(source)
    if not match or source.startswith((".", "/", "~")):
        raise ConfigError(f"no file or folder {source}; for the hub write owner/name or owner/name@revision")
    inline = match["revision"]
    if inline and revision and inline != revision:
        raise ConfigError(f"{source} and revision {revision} contradict each other; give one of them")
    return Asked(match["repo"], match["file"], inline or revision or _pinned_commit(match["repo"]) or "main")


def _pinned_commit(repo: str) -> str | None:
    from kssm_mlx.weights.audit.shipped_manifests import shipped_manifests

    manifest = shipped_manifests().get(repo)
    return manifest and manifest.revision


def _download_files(asked: Asked) -> str:
    """The commit, with every file of it that makes the model in the cache."""
    from huggingface_hub import HfApi, hf_hub_url, snapshot_download

    info = HfApi().model_info(asked.repo, revision=asked.revision, files_metadata=True)
    files = {s.rfilename: s for s in info.siblings or ()}
    if info.sha is None:
        raise ConfigError(f"the hub names no commit of {asked.repo}; give one: {asked.repo}@COMMIT")
    names = choose(files, asked.file)
    for name in names:
        if lfs := files[name].lfs:
            url = hf_hub_url(asked.repo, name, revision=info.sha)
            fetch(url, Promise(name, lfs.size, lfs.sha256), _storage(asked.repo) / "blobs")
    # The hub's own function places the small files and the links; the large ones it finds in the cache.
    snapshot_download(asked.repo, revision=info.sha, allow_patterns=names)
    _record_commit(asked, info.sha)
    return info.sha


def _record_commit(asked: Asked, commit: str) -> None:
    """Which commit a branch or tag was, as huggingface_hub writes it, for the day without a connection."""
    if asked.revision != commit:
        ref = _storage(asked.repo) / "refs" / asked.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _cached_commit(asked: Asked, reason: str) -> str:
    """The commit that the cache has for what was asked. Raises: ConfigError that names what is missing."""
    commit = asked.revision if _COMMIT.fullmatch(asked.revision) else _recorded_commit(asked)
    if not commit or not _snapshot(asked.repo, commit).is_dir():
        raise ConfigError(
            f"{asked.repo} at {asked.revision} is not in the cache, and {reason}; connect and run again, or "
            "give a folder that has its files"
        )
    if missing := _list_missing(_snapshot(asked.repo, commit), asked):
        raise ConfigError(
            f"{asked.repo} at {commit[:12]} is incomplete in the cache, it lacks {', '.join(missing)}, and "
            f"{reason}; connect and run again, the download goes on where it stopped"
        )
    return commit


def _recorded_commit(asked: Asked) -> str:
    """The commit that a branch or tag was; "" where the cache does not say, or says no commit."""
    ref = _storage(asked.repo) / "refs" / asked.revision
    try:
        commit = ref.read_bytes()[:100].decode("ascii", "replace").strip()
    except OSError:
        return ""
    return commit if _COMMIT.fullmatch(commit) else ""


def _list_missing(folder: Path, asked: Asked) -> list[str]:
    """What a snapshot lacks to be a model; a link into the cache whose target is gone counts as missing."""
    names = {p.name for p in folder.iterdir() if p.exists()} if folder.is_dir() else set()
    if asked.file is not None:
        return [asked.file] if asked.file not in names else []
    try:
        chosen = choose(names)
    except ConfigError:
        return [*([] if "config.json" in names else ["config.json"]), "the weights"]
    usual = not chosen[-1].endswith(".pth")  # BlinkDL's files need no configuration
    shards = {s for n in chosen if n.endswith(".index.json") for s in _shards(folder / n)}
    return [n for n in [*(["config.json"] if usual else []), *sorted(shards)] if n not in names]


def _shards(index: Path) -> set[str]:
    """The files an index names; an index that is damaged is the business of the container's own checks."""
    try:
        return set(parse_json(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _resolve_snapshot(asked: Asked, commit: str) -> Resolved:
    folder = _snapshot(asked.repo, commit)
    path = folder / asked.file if asked.file else folder
    return Resolved(path, asked.repo, commit, _promised_digests(folder))


def _promised_digests(folder: Path) -> dict[str, str]:
    """File -> sha256, from the cache's own names: a file in Git LFS is a link to blobs/SHA256."""
    blobs = {p.name: p.resolve().name for p in folder.iterdir() if p.is_symlink()}
    return {name: blob for name, blob in sorted(blobs.items()) if _SHA256.fullmatch(blob)}


def _storage(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")


def _snapshot(repo: str, commit: str) -> Path:
    return _storage(repo) / "snapshots" / commit


@contextmanager
def explain_errors(asked: Asked) -> Iterator[None]:
    """The hub's errors in one line each; no answer at all becomes Unreachable."""
    from huggingface_hub import errors as hub

    repo = asked.repo
    no_answer = vars(hub)["HTTPError"]  # of its HTTP library, which its releases do not agree on
    try:
        yield
    except hub.GatedRepoError:
        raise ConfigError(
            f"{repo} is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
        ) from None
    except hub.RepositoryNotFoundError:
        raise ConfigError(
            f"no repository {repo} on the hub{_suggest_similar(repo)}; a private one needs `hf auth login`"
        ) from None
    except hub.RevisionNotFoundError:
        raise ConfigError(
            f"{repo} has no revision {asked.revision}; without one, the newest is used"
        ) from None
    except hub.HfHubHTTPError as e:
        if e.response.status_code < 500:
            raise ConfigError(
                f"the hub refuses {repo} with status {e.response.status_code}; try `hf auth login`, or later"
            ) from None
        raise Unreachable(f"the hub answers with status {e.response.status_code}") from None
    except hub.OfflineModeIsEnabled:
        raise Unreachable("HF_HUB_OFFLINE forbids to ask the hub") from None
    except (no_answer, hub.LocalEntryNotFoundError) as e:
        raise Unreachable(
            f"the hub cannot be reached ({str(e).splitlines()[0] or type(e).__name__})"
        ) from None
    except OSError as e:
        raise ConfigError(f"cannot store {repo} in {_storage(repo)}: {_describe_reason(e)}") from None


def _suggest_similar(repo: str) -> str:
    from kssm_mlx.weights.audit.shipped_manifests import shipped_manifests

    return nearest(repo, shipped_manifests())


def _describe_reason(e: OSError) -> str:
    if e.errno == errno.ENOSPC:
        return "the disk is full; free space, or set HF_HOME to a folder on a larger volume"
    return f"{(e.strerror or str(e).splitlines()[0]).lower()}; run again, what was received is kept"
