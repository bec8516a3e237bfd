"""The smallest client of the API server that the cluster's own parts need: JSON over one TLS identity."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dev.cluster.errors import ClusterError

TIMEOUT_S = 10.0
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True)
class TlsFiles:
    """A client's certificate, its key and the authority that it trusts."""

    ca: Path
    certificate: Path
    key: Path

    def build_context(self) -> ssl.SSLContext:
        """Return a context that shows the certificate and checks the other side's."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class ApiClient:
    """Requests to one API server as one user, each on a connection of its own."""

    server: str
    tls: TlsFiles

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Return the answer's object.

        Raises:
            ClusterError: the server refused, or could not be reached.
        """
        connection = http.client.HTTPSConnection(
            urlsplit(self.server).netloc, timeout=TIMEOUT_S, context=self.tls.build_context()
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": content_type})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ClusterError(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ClusterError(f"{method} {path}: {response.status} {answer.get('message', '')}")
        return answer
