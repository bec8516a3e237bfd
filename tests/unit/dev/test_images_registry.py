"""Asking a registry for a digest, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dev.images.api import find_digest
from dev.images.errors import ImageError

DIGEST = "sha256:" + "ab" * 32


class _Registry(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status = {"/v2/known/manifests/1": 200, "/v2/broken/manifests/1": 500}.get(self.path, 404)
        self.send_response(status)
        if status == 200:
            assert "application/vnd.oci.image.manifest.v1+json" in self.headers["Accept"]
            self.send_header("Docker-Content-Digest", DIGEST)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_known_tag_has_its_digest(registry: str) -> None:
    assert find_digest(registry, "known", "1") == DIGEST


def test_an_unknown_tag_has_none(registry: str) -> None:
    assert find_digest(registry, "known", "2") is None


def test_a_registry_that_fails_is_an_error(registry: str) -> None:
    with pytest.raises(ImageError, match="answers 500"):
        find_digest(registry, "broken", "1")


def test_a_registry_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ImageError, match="does not answer"):
        find_digest("127.0.0.1:1", "known", "1")
