"""The beginning of weights on the hub: names, shapes, dtypes and sizes, before gigabytes are downloaded.

A safetensors file says at its beginning what is in it. That much is asked for by range, and stands in a
folder for a time, as files of full size with nothing behind it (sparse, so they take no room): whoever reads
headers only sees the files as they would be.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kssm_mlx.errors import ConfigError
from kssm_mlx.weights.hub.resolve import Asked, Unreachable, choose, explain_errors, parse_reference
from kssm_mlx.weights.io.safetensors_header import LIMIT

FIRST = 1 << 16  # bytes of the first request: the header of a small model, and of any the length of its own
Ask = Callable[[str, str | None], bytes]


@dataclass(frozen=True)
class Outline:
    """path: the folder, or the weight file that was named; size: bytes of all weights; received: bytes that
    were downloaded to know this; the rest as of `Resolved`.
    """

    path: Path
    size: int
    received: int
    repo: str | None = None
    revision: str | None = None


@contextmanager
def outline(source: str | Path, revision: str | None = None) -> Iterator[Outline]:
    """The folder of outlines of a repository, which goes away after the block; of a path the path itself.

    Raises: ConfigError as `resolve`, and for weights that do not say at their beginning what they are.
    """
    local = Path(source).expanduser()
    if local.exists():
        yield Outline(local, _weigh(local), 0)
        return
    asked = parse_reference(str(source), revision)
    with tempfile.TemporaryDirectory(prefix="kssm-headers-") as folder:
        try:
            with explain_errors(asked):
                found = _receive_outlines(asked, Path(folder))
        except Unreachable as e:
            raise ConfigError(f"{asked.repo}: {e}; connect and run again") from None
        yield found


def _weigh(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.suffix == ".safetensors"]
    return sum(p.stat().st_size for p in files)


def _receive_outlines(asked: Asked, folder: Path) -> Outline:
    from huggingface_hub import HfApi, hf_hub_url

    info = HfApi().model_info(asked.repo, revision=asked.revision, files_metadata=True)
    files = {s.rfilename: s for s in info.siblings or ()}
    size = received = 0
    for name in choose(files, asked.file):
        url = hf_hub_url(asked.repo, name, revision=info.sha)
        if name.endswith((".bin", ".pth", ".pt")):
            raise ConfigError(
                f"{name} of {asked.repo} does not say at its beginning what is in it; without --headers-only "
                "it is downloaded and read"
            )
        if not name.endswith(".safetensors"):
            content = _ask(url, None)
            (folder / name).write_bytes(content)
            received += len(content)
            continue
        whole = files[name].size or 0
        head = _read_head(lambda span, url=url: _ask(url, span), name)
        with open(folder / name, "wb") as f:
            f.write(head)
            os.truncate(f.fileno(), max(whole, len(head)))
        size, received = size + whole, received + len(head)
    path = folder / asked.file if asked.file else folder
    return Outline(path, size, received, asked.repo, info.sha)


def _read_head(ask: Callable[[str], bytes], name: str) -> bytes:
    """The length of the header and the header. Raises: ConfigError for one that cannot be."""
    head = ask(f"bytes=0-{FIRST - 1}")
    if len(head) < 8:
        return head  # what is wrong with it, the reader of headers says
    (length,) = struct.unpack("<Q", head[:8])
    if length > LIMIT:
        raise ConfigError(
            f"{name} announces a header of {length:,} bytes, more than {LIMIT:,}: it is damaged"
        )
    end = 8 + length
    return head[:end] if end <= len(head) else head + ask(f"bytes={len(head)}-{end - 1}")


def _ask(url: str, span: str | None) -> bytes:
    """The bytes behind an address, or those of a range."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity", **({"Range": span} if span else {})}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        if span and answer.status_code != 206:
            raise ConfigError("the hub sends no parts of files; run it without --headers-only")
        return answer.read()
