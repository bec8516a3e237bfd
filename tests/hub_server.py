"""A server that speaks the hub's HTTP protocol: commits, branches, LFS, ranges, tokens; and fails as a hub may.

Large files are served, as the hub does it, by a redirect to another address, which knows no token; or, as a mirror does
it, by itself.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_right"
LARGE_SUFFIX = ".safetensors"
_CHUNK = 64 * 1024


def is_large(path):
    return path.endswith(LARGE_SUFFIX)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def blob_of(path, content):
    """The name of a file's content in the cache."""
    return sha256(content) if is_large(path) else git_oid(content)


def describe_large(content):
    return {"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}}


@dataclass
class Repository:
    """Commits by name, and what branches they are at. `access` is open, gated (401 and 403) or private."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    access: str = "open"


@dataclass
class Faults:
    """What goes wrong, by the path of a file: cut after so many bytes, so often; wrong bytes, so often."""

    cuts: dict[str, list[int]] = field(default_factory=dict)
    corrupt: Counter = field(default_factory=Counter)
    status: int | None = None
    retry_after: str | None = None
    knows_no_ranges: bool = False
    bytes_per_s: float | None = None
    released: threading.Event | None = None
    """Large files stop half-way until it is set."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    start: int
    has_token: bool
    is_content: bool


class HubServer:
    """Two listening addresses, the hub's and the content network's; every request is noted."""

    def __init__(self, host="127.0.0.1", *, has_content_network=True):
        self.repositories = {}
        self.faults = Faults()
        self.requests = []
        self.host = host
        self.has_content_network = has_content_network
        self._hub, self._content = (self._listen(host, is_content=flag) for flag in (False, True))

    def _listen(self, host, *, is_content):
        server = ThreadingHTTPServer((host, 0), _Handler)
        server.daemon_threads = True
        server.hub, server.is_content = self, is_content
        return server

    @property
    def url(self):
        return f"http://{self.host}:{self._hub.server_port}"

    @property
    def content_url(self):
        return f"http://{self.host}:{self._content.server_port}"

    @contextmanager
    def running(self):
        servers = (self._hub, self._content)
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            if self.faults.released:
                self.faults.released.set()
            for server, thread in zip(servers, threads, strict=True):
                server.shutdown()
                thread.join()
                server.server_close()

    def count_downloads(self, path):
        """How often a file was asked for from its beginning."""
        return sum(
            item.path.endswith(f"/{path}")
            and item.start == 0
            and item.method == "GET"
            and item.is_content == self.is_elsewhere(path)
            for item in self.requests
        )

    def is_elsewhere(self, path):
        return self.has_content_network and is_large(path)

    def starts(self, path):
        return [item.start for item in self.requests if item.path.endswith(f"/{path}") and item.is_content]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        """Tell a file's digest before any redirect, as the hub's own client asks for it."""
        self.do_GET()

    def do_GET(self):
        hub, path = self.server.hub, self.path.partition("?")[0]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        has_token = self.headers.get("Authorization") is not None
        hub.requests.append(Request(self.command, unquote(path), start, has_token, self.server.is_content))
        if hub.faults.status is not None:
            headers = {"Retry-After": hub.faults.retry_after} if hub.faults.retry_after else {}
            return self.reply(hub.faults.status, **headers)
        _, _, rest = path.partition("/api/models/")
        name = "/".join((rest or path.removeprefix("/")).split("/")[:2])
        repository = hub.repositories.get(name)
        if refusal := self.find_refusal(repository, is_api=bool(rest)):
            return self.reply(refusal[0], **{"X-Error-Code": refusal[1]})
        tail = (rest or path.removeprefix("/")).removeprefix(f"{name}/")
        kind, _, tail = tail.partition("/")
        if kind == "revision":
            return self.resolve(repository, unquote(tail))
        if kind == "tree":
            return self.list(repository, tail)
        commit, _, file = tail.partition("/")
        return self.send_file(name, repository, commit, unquote(file), start)

    def find_refusal(self, repository, *, is_api):
        authorization = self.headers.get("Authorization")
        is_right = authorization == f"Bearer {TOKEN}" or self.server.is_content
        if repository is None or (repository.access == "private" and not is_right):
            return (401 if authorization is None else 404, "RepoNotFound")
        # The hub tells anybody what a gated repository holds, and gives its files to few.
        if repository.access == "gated" and not is_right and not is_api:
            return (403 if authorization else 401, "GatedRepo")
        return None

    def resolve(self, repository, revision):
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.reply(404, **{"X-Error-Code": "RevisionNotFound"})
        named = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
        return self.reply(200, json.dumps({"id": named, "sha": commit, "siblings": []}).encode())

    def list(self, repository, commit):
        """Two files a page."""
        if commit not in repository.commits:
            return self.reply(404, **{"X-Error-Code": "RevisionNotFound"})
        files = sorted(repository.commits[commit].items())
        start = int(self.path.partition("cursor=")[2] or 0)
        entries = []
        for path, content in files[start : start + 2]:
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            entries.append(entry | (describe_large(content) if is_large(path) else {}))
        if start == 0:
            entries.append({"type": "directory", "path": "original", "oid": "0" * 40})
        link = {}
        if start + 2 < len(files):
            address = f"{self.server.hub.url}{self.path.partition('&cursor')[0]}&cursor={start + 2}"
            link = {"Link": f'<{address}>; rel="next"'}
        return self.reply(200, json.dumps(entries).encode(), **link)

    def send_file(self, name, repository, commit, path, start):
        hub = self.server.hub
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            return self.reply(404, **{"X-Error-Code": "EntryNotFound"})
        if self.command == "HEAD":
            etag = f'"{blob_of(path, content)}"'
            return self.reply(200, content, ETag=etag, **{"X-Repo-Commit": commit})
        if hub.is_elsewhere(path) and not self.server.is_content:
            return self.reply(302, Location=f"{hub.content_url}/{name}/resolve/{commit}/{path}")
        if hub.faults.corrupt[path] > 0:
            hub.faults.corrupt[path] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        if hub.faults.knows_no_ranges:
            start = 0
        cuts = hub.faults.cuts.get(path)
        cut = cuts.pop(0) if cuts else None
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        return self.reply(206 if start else 200, content[start:], cut=cut, is_large=is_large(path), **ranged)

    def reply(self, status, content=b"", *, cut=None, is_large=False, **headers):
        faults = self.server.hub.faults
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else content[:cut]
        for offset in range(0, len(body), _CHUNK):
            if is_large and faults.released and offset >= len(content) // 2:
                faults.released.wait()
            self.wfile.write(body[offset : offset + _CHUNK])
            if is_large and faults.bytes_per_s:
                threading.Event().wait(_CHUNK / faults.bytes_per_s)
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass
