"""The custom metrics API of a test cluster: the gauges of pods, read from the pods themselves when somebody asks.

It stands in for Prometheus with prometheus-adapter, which answers the same requests from what it has scraped. Served
over TLS by a certificate of its own, to whoever reaches the address; numbers of a test cluster are no secret.
Source: the API as k8s.io/metrics and the HorizontalPodAutoscaler's client have it.
"""

from __future__ import annotations

import json
import re
import ssl
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Json = dict[str, Any]
# Returns the pods of a namespace that a label selector picks.
PodLister = Callable[[str, str], list[Json]]

GROUP, VERSION = "custom.metrics.k8s.io", "v1beta1"
_NAME = "pod-metrics"
_ROOT = f"/apis/{GROUP}/{VERSION}"
_QUERY = re.compile(rf"{_ROOT}/namespaces/(?P<namespace>[^/]+)/pods/\*/(?P<metric>[a-z_]+)")
_SCRAPE_TIMEOUT_S = 5
# The contract's, docs/contract.md.
MANAGEMENT_PORT = 9000


@contextmanager
def serve_pod_metrics(address: str, list_pods: PodLister) -> Iterator[int]:
    """Serve at a free port of the address for as long as the block runs; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = answer(self.path, list_pods)
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((address, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(_issue(address))
        context.load_cert_chain(file.name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, name=_NAME)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def build_registration(address: str, port: int) -> list[Json]:
    """Return the objects by which the API server finds it."""
    metadata = {"name": _NAME, "namespace": "kube-system"}
    ports = [{"name": "https", "protocol": "TCP", "port": port}]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": _NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": ports,
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"name": _NAME, "namespace": "kube-system", "port": port},
            },
        },
    ]


def answer(path: str, list_pods: PodLister) -> tuple[int, Json]:
    """Return status and document for one request."""
    parts = urlsplit(path)
    where = unquote(parts.path)
    if where == _ROOT:
        return 200, {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{GROUP}/{VERSION}",
            "resources": [],
        }
    match = _QUERY.fullmatch(where)
    if match is None:
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
    selector = parse_qs(parts.query).get("labelSelector", [""])[0]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    items = []
    for pod in list_pods(match["namespace"], selector):
        value = _scrape(pod, match["metric"])
        if value is not None:
            described = {
                "kind": "Pod",
                "apiVersion": "/v1",
                "namespace": match["namespace"],
                "name": pod["metadata"]["name"],
            }
            items.append(
                {"describedObject": described, "metricName": match["metric"], "timestamp": now, "value": value}
            )
    return 200, {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}


def _scrape(pod: Json, metric: str) -> str | None:
    """Return the pod's gauge as a quantity, None while it cannot be had."""
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    try:
        with urllib.request.urlopen(
            f"http://{address}:{MANAGEMENT_PORT}/metrics", timeout=_SCRAPE_TIMEOUT_S
        ) as response:
            text = response.read().decode()
    except OSError:
        return None
    found = re.search(rf"^{metric} (\S+)$", text, re.MULTILINE)
    return str(round(float(found[1]))) if found else None


def _issue(address: str) -> bytes:
    """Return a new key with a certificate that it signed itself, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem)
