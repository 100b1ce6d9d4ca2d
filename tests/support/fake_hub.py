"""A hub on loopback that speaks what huggingface_hub asks of one: listing, tree, HEAD and ranged GET."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

LARGE = (".safetensors", ".bin", ".pth")  # what a repository keeps in Git LFS


@dataclass
class FakeHub:
    """Repositories as {repo: {commit: {file: bytes}}}; `log` has every request as (method, path, range).

    corrupt: names of files whose bytes arrive damaged; cut: name -> bytes after which the connection drops,
    at every request; gated: repositories without access; status: an answer to every request;
    whole_only: it knows no ranges.
    """

    repos: dict[str, dict[str, dict[str, bytes]]]
    refs: dict[str, str] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int | None = None
    whole_only: bool = False
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self, name: str) -> list[str | None]:
        """The ranges asked for of a file, in order."""
        return [r for method, path, r in self.log if method == "GET" and path.endswith("/" + name)]


@contextmanager
def served(repos, tmp_path, monkeypatch):
    """A hub on loopback with these repositories; huggingface_hub knows no other and has an empty cache."""
    with FakeHub(repos) as hub:
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time; else 10 MB
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's own attempts
        yield hub


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        # whoever has read enough hangs up while the rest is on its way
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.hub.status:
            return self._send(self.hub.status, b"{}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self._send(404, b"{}")

    def _api(self, repo: str, rest: list[str]):
        if repo in self.hub.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repo not in self.hub.repos:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = self._commit(repo, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.repos[repo][commit]
        if rest[:1] == ["tree"]:
            answer = [
                {"type": "file", "path": n, "size": len(b), "oid": _git(b), **_lfs(n, b)}
                for n, b in files.items()
            ]
        else:
            siblings = [
                {"rfilename": n, "size": len(b), "blobId": _git(b), **_lfs(n, b)} for n, b in files.items()
            ]
            answer = {"id": repo, "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str):
        commit = self._commit(repo, revision)
        content = self.hub.repos[repo][commit].get(name)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git(content)}"', "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers["X-Linked-Etag"] = f'"{_sha256(content)}"'
            headers["X-Linked-Size"] = str(len(content))
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range")
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        partial = bool(start or last) and not self.hub.whole_only
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        body = content[start:stop] if partial else content
        self._send(206 if partial else 200, body, headers, self.hub.cut.get(name))

    def _commit(self, repo: str, revision: str) -> str | None:
        known = self.hub.repos[repo]
        commit = self.hub.refs.get(revision, next(iter(known)) if revision == "main" else revision)
        return commit if commit in known else None

    def _send(self, status: int, body: bytes, headers: dict | None = None, cut: int | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None and cut < len(body):
            self.close_connection = True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _lfs(name: str, content: bytes) -> dict:
    pointer = {"sha256": _sha256(content), "oid": _sha256(content), "size": len(content), "pointerSize": 130}
    return {"lfs": pointer} if name.endswith(LARGE) else {}
