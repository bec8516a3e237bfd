"""One model, reached by an Ingress and by the Gateway API, with TLS and without, while its route changes.

The model's pod stays the same: a route is no part of it.
"""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from dev.cluster.addons import GATEWAY_CLASS, INGRESS_CLASS
from dev.demo.endpoint import await_ready, read_key
from dev.demo.kube import await_value, build_namespace
from tests.e2e.authority import Authority

HOST = "llm.routes.example"
TEXT = {"model": "smollm", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
GATEWAYS = "gateways"
ROUTE_S = 90
TO_GATEWAY = {"host": HOST, "parentRefs": [{"namespace": GATEWAYS, "name": "public"}]}
TO_INGRESS = {"host": HOST, "className": INGRESS_CLASS}
# All that a route may hold, for a merge that replaces one.
BLANK = dict.fromkeys(("type", "host", "className", "controllerProfile", "parentRefs", "tls"))


@dataclass(frozen=True)
class Door:
    """This machine's end of the way in: names are not looked up, and the authority is the test's own."""

    context: ssl.SSLContext

    def request(self, method, url, **options):
        parts = urlsplit(url)
        near = parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl()
        headers = {"Host": parts.netloc} | options.pop("headers", {})
        with httpx.Client(verify=self.context, timeout=120, trust_env=False) as client:
            return client.request(method, near, headers=headers, extensions={"sni_hostname": parts.hostname}, **options)

    @contextmanager
    def stream(self, url, **options):
        parts = urlsplit(url)
        near = parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl()
        headers = {"Host": parts.netloc} | options.pop("headers", {})
        sni = {"sni_hostname": parts.hostname}
        with (
            httpx.Client(verify=self.context, timeout=120, trust_env=False) as client,
            client.stream("POST", near, headers=headers, extensions=sni, **options) as answer,
        ):
            yield answer


class Routed:
    """The endpoint whose route the tests change."""

    def __init__(self, endpoints, name):
        self.endpoints, self.kube, self.name = endpoints, endpoints.kube, name
        self.key = read_key(self.kube, endpoints.get(name))

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"}

    def turn(self, **route):
        """Give it another route; return its URL once that is admitted."""
        self.endpoints.patch(self.name, {"route": BLANK | route})
        return await_ready(self.kube, self.name, self.endpoints.namespace, print, deadline_s=ROUTE_S)["status"]["url"]


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def door(authority):
    return Door(ssl.create_default_context(cadata=authority.certificate))


@pytest.fixture(scope="module")
def routed(endpoints, authority):
    endpoints.kube.apply(authority.build_secret("llm-tls", endpoints.namespace, HOST))
    # Half a core makes 8,000 tokens last for minutes.
    sizes = {
        "requests": {"cpu": "100m", "memory": "1Gi", "ephemeral-storage": "64Mi"},
        "limits": {"cpu": "500m", "memory": "4Gi", "ephemeral-storage": "1Gi"},
    }
    endpoints.apply("routed", route=TO_INGRESS, resources=sizes)
    await_ready(endpoints.kube, "routed", endpoints.namespace, print, deadline_s=420)
    yield Routed(endpoints, "routed")
    endpoints.delete("routed")


@pytest.fixture(scope="module")
def gateway(kube, node_cluster, authority):
    """A platform's Gateway, in a namespace of its own, with a door for HTTP and one for HTTPS."""
    listener = {"hostname": HOST, "allowedRoutes": {"namespaces": {"from": "All"}}}
    web, secure = (urlsplit(url).port for url in (node_cluster.ingress_url, node_cluster.ingress_tls_url))
    listeners = [
        listener | {"name": "web", "protocol": "HTTP", "port": web},
        listener
        | {"name": "websecure", "protocol": "HTTPS", "port": secure, "tls": {"certificateRefs": [{"name": "llm-tls"}]}},
    ]
    metadata = {"name": "public", "namespace": GATEWAYS}
    spec = {"gatewayClassName": GATEWAY_CLASS, "listeners": listeners}
    kube.apply(build_namespace(GATEWAYS))
    kube.apply(
        authority.build_secret("llm-tls", GATEWAYS, HOST),
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": metadata, "spec": spec},
    )
    return metadata


def await_status(door, url, status, headers=None):
    """Ask until the answer has that status; controllers take a moment, and show a certificate of their own in it."""
    seen = []

    def ask():
        try:
            seen.append(door.request("GET", url, headers=headers or {}).status_code)
        except httpx.ConnectError as error:
            seen.append(str(error))
        return True if seen[-1] == status else None

    await_value(lambda: f"{url} answers {status}, saw {seen[-5:]}", ask, deadline_s=30)


def complete(door, routed, url):
    await_status(door, f"{url}/models", 200, routed.headers)
    answer = door.request("POST", f"{url}/completions", json=TEXT, headers=routed.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_ingress_serves_over_tls_and_only_over_it(door, routed, node_cluster):
    url = routed.turn(**TO_INGRESS, tls={"secretName": "llm-tls"})
    assert url == f"https://{HOST}:{urlsplit(node_cluster.ingress_tls_url).port}/routed/v1"
    assert "Paris" in complete(door, routed, url)
    plain = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1"
    assert door.request("GET", f"{plain}/models", headers=routed.headers).status_code == 404
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        Door(ssl.create_default_context(cadata=Authority().certificate)).request("GET", f"{url}/models")


def test_http_route_serves_with_tls_and_without(door, routed, gateway, node_cluster):
    url = routed.turn(**TO_GATEWAY)
    assert url == f"https://{HOST}:{urlsplit(node_cluster.ingress_tls_url).port}/routed/v1"
    assert "Paris" in complete(door, routed, url)
    section = TO_GATEWAY | {"parentRefs": [TO_GATEWAY["parentRefs"][0] | {"sectionName": "web"}]}
    plain = routed.turn(**section)
    assert plain == f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1"
    assert "Paris" in complete(door, routed, plain)
    await_status(door, f"{url}/models", 404, routed.headers)


def test_gateway_that_does_not_let_the_route_in_is_told(routed, gateway):
    routed.endpoints.patch("routed", {"route": BLANK | TO_GATEWAY | {"host": "other.example"}})
    # Until the Gateway has answered, the message says that.
    says = "NoMatchingListenerHostname"
    routed.endpoints.await_condition("routed", "RouteAdmitted", {"NotAdmitted"}, says=says)
    routed.endpoints.patch("routed", {"route": {"host": HOST, "parentRefs": [{"name": "nowhere"}]}})
    condition = routed.endpoints.await_condition("routed", "RouteAdmitted", {"GatewayNotFound"})
    assert "Gateway e2e/nowhere does not exist" in condition["message"]


@pytest.mark.parametrize("route", [TO_INGRESS, TO_GATEWAY], ids=["ingress", "http-route"])
def test_path_is_matched_by_segment_and_arrives_as_it_was_sent(door, routed, gateway, route, node_cluster):
    routed.turn(**route)
    base = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}"
    await_status(door, f"{base}/routed/v1/models", 200, routed.headers)
    assert door.request("GET", f"{base}/routed2/v1/models", headers=routed.headers).status_code == 404
    assert door.request("GET", f"{base}/ROUTED/v1/models", headers=routed.headers).status_code == 404
    # What a path below ours leads to is the runtime's to say: its envelope names the path as the client sent it.
    answer = door.request("GET", f"{base}/routed/v1/nothing", headers=routed.headers)
    assert answer.status_code == 404
    assert "GET /routed/v1/nothing." in answer.json()["error"]["message"]


def test_host_may_be_shared_and_another_host_is_another_place(door, routed, shared, node_cluster):
    url = routed.turn(host="localhost", className=INGRESS_CLASS)
    assert urlsplit(url).netloc == urlsplit(shared.url).netloc
    assert "Paris" in complete(door, routed, url)
    assert door.request("GET", f"{shared.url}/models", headers=shared.headers).status_code == 200
    elsewhere = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}"
    await_status(door, f"{elsewhere}/routed/v1/models", 404)
    assert door.request("GET", f"{elsewhere}/shared/v1/models", headers=shared.headers).status_code == 404


@pytest.mark.parametrize("route", [TO_INGRESS, TO_GATEWAY], ids=["ingress", "http-route"])
def test_path_is_taken_over_from_the_older_endpoint_of_another_namespace(
    door, routed, gateway, rivals, route, node_cluster
):
    url = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1/models"
    routed.turn(**TO_INGRESS)
    await_status(door, url, 200, routed.headers)
    rivals.apply("rival", dedicate="routed", suspend=True, route=route)
    try:
        condition = rivals.await_condition("rival", "Accepted", {"PathConflict"})
        assert "e2e/routed" in condition["message"]
        assert rivals.await_condition("rival", "RouteAdmitted", {"PathConflict"})["status"] == "False"
        assert door.request("GET", url, headers=routed.headers).status_code == 200
        # The older one goes elsewhere: the path is the rival's, which is suspended, so nobody is there to answer.
        routed.turn(host="localhost", className=INGRESS_CLASS)
        rivals.await_condition("rival", "RouteAdmitted", {"Programmed"})
        await_status(door, url, 503)
        # It comes back, and is the older one still.
        routed.turn(**TO_INGRESS)
        rivals.await_condition("rival", "Accepted", {"PathConflict"})
        await_status(door, url, 200, routed.headers)
    finally:
        rivals.delete("rival")


@pytest.fixture(scope="module")
def rivals(open_namespace):
    return open_namespace("e2e-rivals")


class Asker(threading.Thread):
    """A client that asks for the list of models, one time after the other, until it is stopped."""

    def __init__(self, door, url, headers):
        super().__init__()
        self.answers = []
        self._ask = lambda: door.request("GET", url, headers=headers)
        self._stopped = threading.Event()

    def run(self):
        while not self._stopped.is_set():
            try:
                answer = self._ask()
                self.answers.append((time.time(), answer.status_code))
            except httpx.HTTPError as error:
                self.answers.append((time.time(), repr(error)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self._stopped.set()
        self.join(timeout=60)


def test_path_is_not_lost_while_the_route_changes_its_kind(door, routed, gateway, node_cluster):
    url = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1/models"
    routed.turn(**TO_INGRESS)
    await_status(door, url, 200, routed.headers)

    def await_gone(kind):
        await_value(f"no {kind}", lambda: routed.kube.get(kind, "routed", "e2e") is None or None, deadline_s=60)

    with Asker(door, url, routed.headers) as asker:
        routed.turn(**TO_GATEWAY)
        await_gone("ingress")
        routed.turn(**TO_INGRESS)
        await_gone("httproute")
        num_answers = len(asker.answers)
        await_value("it is asked some more", lambda: len(asker.answers) > num_answers + 20 or None, deadline_s=60)
    assert [answer for answer in asker.answers if answer[1] != 200] == []


@pytest.mark.parametrize("route", [TO_INGRESS, TO_GATEWAY], ids=["ingress", "http-route"])
def test_text_streams_piece_by_piece(door, routed, gateway, route, node_cluster):
    """The end of a stream that was asked for without end never comes, and pieces arrive all the same."""
    routed.turn(**route)
    url = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1"
    await_status(door, f"{url}/models", 200, routed.headers)
    assert len(read_pieces(door, routed, url, enough=lambda pieces: len(pieces) >= 20)) >= 20


# Traefik's own limits for a connection are 60 s for a request and 180 s for an idle one.
LONGER_S = 190


@pytest.mark.long
@pytest.mark.parametrize("route", [TO_INGRESS, TO_GATEWAY], ids=["ingress", "http-route"])
def test_stream_outlasts_every_default_timeout(door, routed, gateway, route, node_cluster):
    routed.turn(**route)
    url = f"http://{HOST}:{urlsplit(node_cluster.ingress_url).port}/routed/v1"
    await_status(door, f"{url}/models", 200, routed.headers)
    began = time.monotonic()
    pieces = read_pieces(door, routed, url, enough=lambda _: time.monotonic() - began > LONGER_S)
    assert time.monotonic() - began > LONGER_S, f"the stream ended after {len(pieces)} pieces"


def read_pieces(door, routed, url, *, enough):
    """Read a stream of as many tokens as the model has room for until it is enough, or ends."""
    body = TEXT | {"max_tokens": 8000, "ignore_eos": True, "stream": True}
    pieces = []
    with door.stream(f"{url}/completions", json=body, headers=routed.headers) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                pieces.append(line)
                if enough(pieces):
                    break
    return pieces
