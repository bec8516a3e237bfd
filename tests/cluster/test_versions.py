"""Two versions of the operator side by side, as an upgrade and a rollback have them for a while."""

from __future__ import annotations

import pytest

from tests.cluster.audit import AuditLog
from tests.cluster.harness import COLLECTION_S, Operator, eventually
from tests.previous import export_previous

ACCOUNTS = ("operator-old", "operator-new")
HANDED_OVER_S = 3.0


@pytest.fixture(scope="module")
def old_code(tmp_path_factory):
    return export_previous(tmp_path_factory.mktemp("previous")) / "operator"


@pytest.fixture
def versions(make_account, operator_process, tmp_path):
    """The old operator and the new one, not started; ended after the test in whatever state they are."""
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


@pytest.mark.promise(5)
@pytest.mark.promise(11)
def test_two_versions_have_one_leader_and_change_no_pod(versions, old_code, namespace, api_cluster):
    old, new = versions
    old.start(PYTHONPATH=str(old_code))
    namespace.apply("chat")
    namespace.await_children("chat")
    eventually(lambda: namespace.pods("chat"))
    before = snapshot(namespace)

    # An upgrade: the new one stands by until the old one goes, and then brings what the old one did not know.
    new.start("standing by")
    old.await_role("leading")
    namespace.apply("during")
    namespace.await_children("during")
    # The older one made them.
    assert namespace.policy("during") is None
    old.stop()
    new.await_role("leading", HANDED_OVER_S)
    eventually(lambda: namespace.policy("chat"))
    assert snapshot(namespace) == before

    # A rollback: the old one again, which leaves alone what it does not know.
    old.start("standing by", PYTHONPATH=str(old_code))
    new.stop()
    old.await_role("leading", HANDED_OVER_S)
    namespace.apply("marker")
    namespace.await_children("marker")
    assert snapshot(namespace) == before

    # What belongs to an endpoint goes with it, whichever version made it.
    namespace.delete("chat")
    eventually(lambda: namespace.policy("chat") is None and namespace.deployment("chat") is None, COLLECTION_S)
    assert AuditLog(api_cluster.audit_log).find_overlaps(*ACCOUNTS) == []
