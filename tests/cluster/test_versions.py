"""Two versions of the operator side by side, as an upgrade and a rollback have them for a while."""

from __future__ import annotations

import pytest

from tests.cluster.audit import AuditLog
from tests.cluster.harness import COLLECTION_S, INGRESSES, Operator, eventually
from tests.other_version import make_other_version

ACCOUNTS = ("operator-old", "operator-new")
HANDED_OVER_S = 3.0


@pytest.fixture(scope="module")
def other_code(tmp_path_factory):
    return make_other_version(tmp_path_factory.mktemp("other")) / "operator"


@pytest.fixture
def versions(make_account, operator_process, tmp_path):
    """The older operator and the newer one, not started; ended after the test in whatever state they are."""
    if operator_process.is_running():
        operator_process.stop()
    made = [Operator(make_account(name), tmp_path / name) for name in ACCOUNTS]
    yield made
    for one in made:
        if one.is_running():
            one.stop()


def snapshot(namespace, name="chat"):
    """What an upgrade must not touch: the pods, the template that they come from, how many there are."""
    deployment = namespace.deployment(name)
    pods = sorted(pod["metadata"]["uid"] for pod in namespace.pods(name))
    return deployment["metadata"]["uid"], deployment["spec"]["template"], deployment["spec"]["replicas"], pods


def environment(namespace, name):
    (container,) = namespace.deployment(name)["spec"]["template"]["spec"]["containers"]
    return {item["name"] for item in container["env"]}


def work(namespace, name):
    """Have the leader look at the first endpoint again, and make another one."""
    namespace.api.delete(namespace.path(INGRESSES, "ingresses", "chat"))
    namespace.apply(name)
    namespace.await_children(name)
    namespace.await_children("chat")


@pytest.mark.promise(5)
@pytest.mark.promise(11)
def test_two_versions_have_one_leader_and_change_no_pod(versions, other_code, namespace, api_cluster):
    old, new = versions
    old.start(PYTHONPATH=str(other_code))
    namespace.apply("chat")
    namespace.await_children("chat")
    eventually(lambda: namespace.pods("chat"))
    before = snapshot(namespace)

    # An upgrade: the new one stands by until the old one goes.
    new.start("standing by")
    old.await_role("leading")
    work(namespace, "during")
    assert "WRITTEN_BY" in environment(namespace, "during")
    old.stop()
    new.await_role("leading", HANDED_OVER_S)
    work(namespace, "after")
    assert "WRITTEN_BY" not in environment(namespace, "after")
    assert snapshot(namespace) == before

    # A rollback: the old one again.
    old.start("standing by", PYTHONPATH=str(other_code))
    new.stop()
    old.await_role("leading", HANDED_OVER_S)
    work(namespace, "back")
    assert "WRITTEN_BY" in environment(namespace, "back")
    assert "WRITTEN_BY" not in environment(namespace, "after")
    assert snapshot(namespace) == before

    # What belongs to an endpoint goes with it, whichever version made it.
    namespace.delete("chat")
    eventually(lambda: namespace.policy("chat") is None and namespace.deployment("chat") is None, COLLECTION_S)
    assert AuditLog(api_cluster.audit_log).find_overlaps(*ACCOUNTS) == []
