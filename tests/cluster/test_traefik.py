"""Routes through a real Traefik that follows this API server; a stub that the test controls stands in for the pods."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from dev.cluster.addons import GATEWAY_CLASS, INGRESS_CLASS, build_addons
from dev.proxies import find_traefik
from tests.cluster.gateways import GATEWAY, route_of
from tests.cluster.harness import CORE, RBAC, SMALLEST, eventually
from tests.proxies.servers import read_words
from tests.proxies.upstream import Upstream

SLICES = "/apis/discovery.k8s.io/v1"
START_S = 60.0
ROUTED_S = 30.0
# Traefik's own limits for a connection are 60 s for a request and 180 s for an idle one.
SILENCE_S = 190.0
WORDS = [f"word-{index}" for index in range(10)]


def find_address():
    """Return an address of this machine that is not loopback, which a Service may not lead to; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            pytest.skip(f"this machine has no address but loopback: {error}")
        return probe.getsockname()[0]


@pytest.fixture(autouse=True)
def running(operator):
    return operator


@pytest.fixture(scope="module")
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def traefik(api_cluster, admin, gateway_api, tmp_path_factory, port):
    """Traefik with the timeouts that it has by itself, under the rights that it has on the local node."""
    folder = tmp_path_factory.mktemp("traefik")
    wanted = {"IngressClass", "GatewayClass"}
    for path, manifest in build_addons(api_cluster.plan).items():
        if manifest["kind"] in wanted or manifest["metadata"]["name"] == "dedicate:traefik":
            admin.apply(path, manifest)
    account = {"kind": "ServiceAccount", "name": "traefik", "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "dedicate:traefik"}
    admin.create(f"{CORE}/namespaces/default/serviceaccounts", {"metadata": {"name": "traefik"}})
    admin.create(
        f"{RBAC}/clusterrolebindings", {"metadata": {"name": "traefik"}, "roleRef": role, "subjects": [account]}
    )
    kubeconfig = api_cluster.kubeconfig_for("traefik", "default", folder / "kubeconfig")
    command = [
        find_traefik(),
        f"--entrypoints.web.address=127.0.0.1:{port}",
        "--providers.kubernetesgateway=true",
        "--providers.kubernetesgateway.statusaddress.ip=127.0.0.1",
        "--providers.kubernetesingress=true",
        "--providers.kubernetesingress.ingressendpoint.ip=127.0.0.1",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | {"KUBECONFIG": str(kubeconfig)}, stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(timeout=30)
    for path, manifest in build_addons(api_cluster.plan).items():
        if manifest["kind"] in wanted:
            admin.delete(path)


class Place:
    """An endpoint whose Service leads to the stub, and a Gateway beside it."""

    def __init__(self, namespace, upstream, port):
        self.namespace, self._port, self._host = namespace, port, f"{namespace.name}.example"
        self.url = f"http://127.0.0.1:{port}/chat/v1"
        self.headers = {"Host": self._host}
        listener = {"name": "web", "protocol": "HTTP", "port": port}
        gateway = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "public"},
            "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [listener]},
        }
        namespace.api.apply(namespace.path(GATEWAY, "gateways", "public"), gateway)
        namespace.apply("chat", {**SMALLEST, "route": {"type": "None"}})
        address, number = upstream
        eventually(lambda: namespace.service("chat"))
        pods = {
            "metadata": {"name": "chat-stub", "labels": {"kubernetes.io/service-name": "chat"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": "http", "protocol": "TCP", "port": number}],
        }
        namespace.api.create(namespace.path(SLICES, "endpointslices"), pods)

    @property
    def by_ingress(self):
        return {"type": "Ingress", "host": self._host, "className": INGRESS_CLASS, "parentRefs": None}

    @property
    def by_gateway(self):
        return {"type": "HTTPRoute", "host": self._host, "className": None, "parentRefs": [{"name": "public"}]}

    def turn(self, route):
        """Give it another route; return once that is admitted and leads to the stub, which knows no GET."""
        self.namespace.merge("chat", {"route": route})
        generation = self.namespace.endpoint("chat")["metadata"]["generation"]

        def is_admitted():
            conditions = self.namespace.endpoint("chat")["status"]["conditions"]
            (routed,) = (item for item in conditions if item["type"] == "RouteAdmitted")
            return routed["status"] == "True" and routed["observedGeneration"] == generation

        eventually(is_admitted, START_S)
        eventually(lambda: self.ask() == 501, ROUTED_S)

    def ask(self):
        return httpx.get(f"{self.url}/models", headers=self.headers, trust_env=False, timeout=10).status_code


@pytest.fixture
def place(namespace, traefik, port):
    address = find_address()
    with Upstream(address) as upstream:
        made = Place(namespace, (address, upstream.port), port)
        made.upstream = upstream
        yield made


@pytest.fixture(params=["by_ingress", "by_gateway"])
def routed(place, request):
    place.turn(getattr(place, request.param))
    return place


@contextmanager
def stream(place, read_s):
    with (
        httpx.Client(timeout=httpx.Timeout(30, read=read_s), trust_env=False) as client,
        client.stream("POST", f"{place.url}/completions", json={"stream": True}, headers=place.headers) as answer,
    ):
        yield answer


def test_each_word_arrives_before_the_next_is_sent(routed):
    routed.upstream.send(WORDS[0])
    with stream(routed, read_s=10) as answer:
        words = read_words(answer)
        for index, word in enumerate(WORDS):
            assert next(words) == word
            routed.upstream.send(WORDS[index + 1]) if index + 1 < len(WORDS) else routed.upstream.end()
        assert list(words) == []
    assert routed.upstream.paths == ["/chat/v1/completions"]


@pytest.mark.long
def test_a_silence_longer_than_every_default_timeout_cuts_nothing(routed):
    routed.upstream.send("before")
    with stream(routed, read_s=2 * SILENCE_S) as answer:
        words = read_words(answer)
        assert next(words) == "before"
        time.sleep(SILENCE_S)  # the silence itself is what is tested
        routed.upstream.send("after")
        routed.upstream.end()
        assert list(words) == ["after"]


def test_path_is_not_lost_while_the_route_changes_its_kind(place):
    place.turn(place.by_ingress)
    answers, stopped = [], threading.Event()

    def ask_on():
        while not stopped.is_set():
            answers.append(place.ask())

    asker = threading.Thread(target=ask_on)
    asker.start()
    try:
        place.turn(place.by_gateway)
        eventually(lambda: place.namespace.ingress("chat") is None, ROUTED_S)
        place.turn(place.by_ingress)
        eventually(lambda: route_of(place.namespace, "chat") is None, ROUTED_S)
        num_answers = len(answers)
        eventually(lambda: len(answers) > num_answers + 100, ROUTED_S)
    finally:
        stopped.set()
        asker.join()
    assert set(answers) == {501}


def test_another_host_does_not_lead_to_it(routed):
    assert httpx.get(f"{routed.url}/models", headers={"Host": "b.example"}, trust_env=False).status_code == 404
