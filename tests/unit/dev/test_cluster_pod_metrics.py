"""The custom metrics API of a test cluster answers what a HorizontalPodAutoscaler asks."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dev.cluster import pod_metrics
from dev.cluster.pod_metrics import GROUP, VERSION, answer, build_registration

ROOT = f"/apis/{GROUP}/{VERSION}"
QUERY = f"{ROOT}/namespaces/team/pods/%2A/dedicate_requests_in_progress?labelSelector=dedicate.dev%2Fendpoint%3Dchat"
METRICS = b"# HELP x\ndedicate_requests_in_progress_other 9.0\ndedicate_requests_in_progress 3.0\n"


class Gauges(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS)

    def log_message(self, *_):
        pass


@pytest.fixture
def pod(monkeypatch):
    """A pod whose gauges are served on loopback."""
    server = HTTPServer(("127.0.0.1", 0), Gauges)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(pod_metrics, "MANAGEMENT_PORT", server.server_port)
    yield {"metadata": {"name": "chat-1"}, "status": {"podIP": "127.0.0.1"}}
    server.shutdown()
    thread.join()
    server.server_close()


def test_gauge_of_each_pod_that_the_selector_picks(pod):
    asked = []

    def list_pods(namespace, selector):
        asked.append((namespace, selector))
        return [pod, {"metadata": {"name": "chat-2"}, "status": {}}]

    status, document = answer(QUERY, list_pods)
    (item,) = document["items"]
    assert (status, document["kind"], item["value"]) == (200, "MetricValueList", "3")
    assert item["describedObject"] == {"kind": "Pod", "apiVersion": "/v1", "namespace": "team", "name": "chat-1"}
    assert asked == [("team", "dedicate.dev/endpoint=chat")]


def test_discovery_and_what_is_not_there():
    assert answer(ROOT, lambda *_: [])[1]["groupVersion"] == f"{GROUP}/{VERSION}"
    assert answer(f"{ROOT}/namespaces/team/services/*/x", lambda *_: [])[0] == 404


def test_registration_leads_to_the_address():
    service, endpoints, registration = build_registration("10.254.0.1", 4321)
    assert registration["spec"]["service"]["name"] == service["metadata"]["name"]
    assert endpoints["endpoints"][0]["addresses"] == ["10.254.0.1"]
    assert {port["port"] for port in (*service["spec"]["ports"], *endpoints["ports"])} == {4321}
