"""A whole cluster with our chart and images in it, and one endpoint that most tests share.

Endpoints live in a namespace that enforces the restricted Pod Security Standard.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest

from dev.cluster.addons import INGRESS_CLASS
from dev.demo import objects
from dev.demo.completion import Client
from dev.demo.endpoint import await_ready, find_condition, read_key
from dev.demo.errors import DemoError
from dev.demo.kube import Kube, await_value, build_namespace
from dev.demo.model_folder import MODEL_FOLDER, ensure_models_folder
from dev.images.api import push_images
from dev.images.recipe import RECIPES
from tests.e2e.mirror import build_hub

NAMESPACE = "e2e"
MODEL_URI = f"pvc://{objects.MODELS_CLAIM}/{MODEL_FOLDER}"

# Loading the model takes 20 s alone; the first pull of 5.6 GB a minute; all of it on two busy cores.
READY_S = 420
GONE_S = 120
CONDITION_S = 120
OPERATOR = "app.kubernetes.io/component=operator"
TAIL = ("--tail=60", "--prefix", "--timestamps")


def pytest_collection_modifyitems(items):
    """Without root there is no node; where CI runs that is a failure of the cluster fixture, not a skip."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        for item in items:
            if "tests/e2e/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="a cluster with a node needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Add to the report of a failed test what the cluster looked like."""
    report = yield
    kube = item.funcargs.get("kube")
    if report.failed and kube is not None:
        for title, arguments in {
            "endpoints and pods": ("get", "dedicatedendpoints,pods", "--all-namespaces", "--output=wide"),
            "events": ("get", "events", f"--namespace={NAMESPACE}", "--sort-by=.lastTimestamp"),
            "operator": ("logs", f"--namespace={objects.OPERATOR_NAMESPACE}", f"--selector={OPERATOR}", *TAIL),
            "runtime": ("logs", f"--namespace={NAMESPACE}", "--selector=dedicate.dev/endpoint=shared", *TAIL),
        }.items():
            try:
                report.sections.append((title, kube.kubectl(*arguments)))
            except DemoError as error:
                report.sections.append((title, str(error)))
    return report


@dataclass(frozen=True)
class Served:
    """An endpoint that is Ready, and how to reach it."""

    name: str
    url: str
    key: str

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"}


class Endpoints:
    """Apply endpoints into one namespace, look at them, remove them."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    def apply(self, name, model_uri=MODEL_URI, **spec):
        quick = {"termination": {"preStopSeconds": 2, "drainSeconds": 20}}
        self.kube.apply(objects.build_endpoint(model_uri, name=name, namespace=self.namespace, **{**quick, **spec}))

    def patch(self, name, spec):
        """Merge into the specification; None removes a field."""
        patch = json.dumps({"spec": spec})
        self.kube.kubectl("patch", "de", name, f"--namespace={self.namespace}", "--type=merge", f"--patch={patch}")

    def get(self, name):
        return self.kube.get("dedicatedendpoint", name, self.namespace)

    def await_served(self, name, deadline_s=READY_S):
        endpoint = await_ready(self.kube, name, self.namespace, print, deadline_s=deadline_s)
        served = Served(name, endpoint["status"]["url"], read_key(self.kube, endpoint))
        Client(served.url, served.key, name).await_route()
        return served

    def await_condition(self, name, kind, reasons, deadline_s=CONDITION_S, says=""):
        """Return the condition once its reason is one of `reasons`, and its message has the words."""
        seen = []

        def ask():
            condition = find_condition(self.get(name) or {}, kind)
            if condition.get("reason") in reasons and says in condition["message"]:
                return condition
            told = condition.get("reason"), condition.get("message")
            if not seen or seen[-1] != told:
                seen.append(told)
            return None

        return await_value(
            lambda: f"{kind} of {name} is one of {sorted(reasons)} and says {says!r}, saw {seen}",
            ask,
            deadline_s=deadline_s,
        )

    def children(self, name):
        """Return `kind/name` of what carries the endpoint's label; a cache claim may be kept and is not counted."""
        kinds = (
            "deployments,replicasets,pods,services,endpointslices,ingresses,httproutes,secrets,configmaps,"
            "networkpolicies,poddisruptionbudgets,horizontalpodautoscalers"
        )
        items = self.kube.items(kinds, self.namespace, f"dedicate.dev/endpoint={name}")
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in items)

    def await_pass(self):
        """Return once the leader has gone through all that there is: an endpoint that is new comes after it."""
        self.apply("marker", suspend=True, route={"type": "None"})
        self.await_condition("marker", "Ready", {"Suspended"})
        self.delete("marker")

    def delete(self, name):
        self.kube.kubectl("delete", "de", name, f"--namespace={self.namespace}", "--ignore-not-found", timeout_s=GONE_S)
        await_value(f"{name} leaves nothing", lambda: not self.children(name) or None, deadline_s=GONE_S)


@pytest.fixture(scope="session")
def kube(node_cluster):
    return Kube(kubeconfig=node_cluster.kubeconfig)


@pytest.fixture(scope="session")
def hub(node_cluster):
    """The hub that the chart is told of, at the machine's end of the link to the node.

    The pods' NetworkPolicy, which is enforced, lets them out to its port and no other that is used here.
    """
    with build_hub(node_cluster.plan.host_address).running() as server:
        yield server


@pytest.fixture(scope="session")
def values(node_cluster, hub):
    images = push_images(RECIPES, node_cluster.registry, print)
    values = objects.build_local_values(
        images, host="localhost", class_name=INGRESS_CLASS, ports=node_cluster.plan.ports
    )
    return values | {"models": {"hubEndpoint": hub.url}}


@pytest.fixture(scope="session")
def release(kube, values, ran_against):
    """The chart, installed by Helm; the name of the release."""
    kube.apply(build_namespace(objects.OPERATOR_NAMESPACE))
    kube.install_chart(objects.RELEASE, objects.OPERATOR_NAMESPACE, values)
    node = json.loads(kube.kubectl("get", "nodes", "--output=json"))["items"][0]["status"]["nodeInfo"]
    ran_against(
        "e2e",
        f"kubelet {node['kubeletVersion']}, {node['containerRuntimeVersion']}, Traefik, Helm, image digests "
        + ", ".join(values[name]["image"]["digest"][7:19] for name in RECIPES),
    )
    return objects.RELEASE


@pytest.fixture(scope="session")
def open_namespace(kube):
    """Make a namespace with a claim on the models in it; return what works with endpoints there."""

    def open_(name):
        kube.apply(build_namespace(name))
        kube.apply(*objects.build_model_volume(ensure_models_folder(), name))
        return Endpoints(kube, name)

    return open_


@pytest.fixture(scope="session")
def endpoints(open_namespace, release):
    return open_namespace(NAMESPACE)


@pytest.fixture(scope="session")
def examples(open_namespace, release):
    """A namespace of its own, because names in examples/ are what they are."""
    return open_namespace("examples")


@pytest.fixture(scope="session")
def shared(endpoints):
    """The endpoint that tests share, at /shared; a test that disturbs it leaves it Ready."""
    endpoints.apply("shared")
    return endpoints.await_served("shared")
