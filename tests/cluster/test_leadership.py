"""Promise 11: of several operators one leads; a killed one is replaced within 20 s, one that ends within 3 s.

Each operator here has an account of its own, so that the API server's audit log tells whose a write was. Tests end
with a look at that log: no write of one lies within the term of another.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dev.faults import storms
from dev.faults.proxy import FaultProxy, is_write
from tests.cluster.audit import AuditLog
from tests.cluster.harness import CORE, DEPLOYMENTS, LEASE, LEASES, REPOSITORY, Operator, eventually
from tests.cluster.severed import Link

ACCOUNTS = ("operator-a", "operator-b")
KILLED_S = 20.0
HANDED_OVER_S = 3.0


@pytest.fixture(scope="module")
def kubeconfigs(make_account):
    return [make_account(name, leases=(LEASE, "dedicate-second")) for name in ACCOUNTS]


@pytest.fixture
def audit(api_cluster) -> Iterator[AuditLog]:
    log = AuditLog(api_cluster.audit_log)
    yield log
    assert log.find_overlaps(*ACCOUNTS) == []


@pytest.fixture
def operators(kubeconfigs, operator_process, audit, tmp_path):
    """The two, not started; ended after the test in whatever state they are."""
    if operator_process.is_running():
        operator_process.stop()
    made = [Operator(kubeconfig, tmp_path / name) for kubeconfig, name in zip(kubeconfigs, ACCOUNTS, strict=True)]
    yield made
    for one in made:
        if one.is_running():
            one.send(signal.SIGCONT)
            one.stop()


@pytest.fixture
def pair(operators):
    """A leader and a standby."""
    leader, standby = operators
    leader.start()
    standby.start("standing by")
    return leader, standby


def lease(admin):
    return admin.get(f"{LEASES}/{LEASE}")


def newest(audit, account):
    """The time of the account's last write that was not to the Lease."""
    writes = [write for write in audit.writes(account) if write.resource != "leases"]
    return writes[-1].received if writes else ""


def written_since(audit, account, since):
    """What the account wrote, or what was left of it where it was cut off."""
    writes = audit.writes(account, since=since)
    return [str(write) for write in writes if write.resource != "leases" and not write.is_void]


@pytest.mark.promise(11)
def test_one_leads_and_the_other_writes_nothing(pair, namespace, admin, audit):
    leader, standby = pair
    before = newest(audit, "operator-b")
    namespace.apply("chat")
    namespace.await_children("chat")
    holder = lease(admin)["spec"]["holderIdentity"]
    assert holder
    assert standby.ask("/readyz")[1] == f"ok: standing by for {holder}"
    assert leader.ask("/readyz")[1] == "ok: leading"
    assert standby.probe("/healthz") == 200
    assert written_since(audit, "operator-b", before) == []
    assert newest(audit, "operator-a")


def test_promise_11_a_killed_leader_is_replaced(pair, namespace):
    leader, standby = pair
    namespace.apply("before")
    namespace.await_children("before")
    leader.stop(signal.SIGKILL)
    namespace.api.delete(namespace.path(DEPLOYMENTS, "deployments", "before"))
    namespace.apply("after")
    eventually(lambda: namespace.deployment("before") and namespace.deployment("after"), KILLED_S)
    standby.await_role("leading")


def test_promise_11_a_leader_that_ends_hands_over(pair, namespace, admin):
    leader, standby = pair
    namespace.apply("before")
    namespace.await_children("before")
    transitions = lease(admin)["spec"]["leaseTransitions"]
    leader.send(signal.SIGTERM)
    namespace.apply("after")
    eventually(lambda: namespace.deployment("after"), HANDED_OVER_S)
    standby.await_role("leading")
    assert leader.wait() == 0
    assert lease(admin)["spec"]["leaseTransitions"] == transitions + 1
    assert [line["message"] for line in leader.records() if line["message"] == "released the Lease"]


@pytest.mark.promise(11)
def test_rollout_hands_over_under_work(operators, namespace):
    """New before old, as the chart's rollout does it, while endpoints arrive."""
    old, new = operators
    old.start()
    for index in range(5):
        namespace.apply(f"old{index}")
    new.start("standing by")
    old.send(signal.SIGTERM)
    for index in range(5):
        namespace.apply(f"new{index}")
    new.await_role("leading", HANDED_OVER_S)
    for name in (f"{age}{index}" for age in ("old", "new") for index in range(5)):
        namespace.await_children(name)


@pytest.mark.promise(11)
@pytest.mark.parametrize("attempt", [0, *(pytest.param(index, marks=pytest.mark.long) for index in range(1, 20))])
def test_suspended_leader_writes_nothing_when_it_wakes(attempt, pair, namespace, audit):
    """It is stopped in the middle of work, of which the other has done everything when it wakes."""
    leader, standby = pair
    names = [f"before{index}" for index in range(6)]
    services = [namespace.path(CORE, "services", name) for name in names]
    for name in names:
        namespace.apply(name)
    for name in names:
        namespace.await_children(name)
    # Another moment of its work each time.
    for index in range(10 + attempt):
        for service in services:
            namespace.api.merge(service, {"spec": {"selector": {"edit": str(index)}}})
    stopped = leader.suspend()
    namespace.apply("during")
    eventually(lambda: namespace.deployment("during"), KILLED_S)
    standby.await_role("leading")
    # What it was about to repair is missing by now: a late repair would create it.
    for service in services:
        namespace.api.delete(service)
    leader.send(signal.SIGCONT)
    leader.await_role("standing by")
    for name in names:
        eventually(lambda name=name: namespace.service(name))
    namespace.apply("marker")
    namespace.await_children("marker")
    assert [str(write) for write in audit.writes("operator-a", since=stopped) if write.resource != "leases"] == []


def test_write_that_was_held_back_on_its_way_is_refused(operators, kubeconfigs, namespace, tmp_path, audit):
    proxy = FaultProxy(kubeconfigs[0], tmp_path)
    leader, standby = Operator(proxy.kubeconfig, tmp_path / "held"), operators[1]
    hold = storms.Hold(lambda request: is_write(request) and "/services/" in request.path)
    try:
        leader.start()
        standby.start("standing by")
        namespace.apply("chat")
        namespace.await_children("chat")
        proxy.start(hold)
        service = namespace.path(CORE, "services", "chat")
        namespace.api.merge(service, {"spec": {"selector": {"edit": "yes"}}})
        eventually(lambda: hold.num_met)
        leader.stop(signal.SIGKILL)
        namespace.api.end_lease()
        eventually(lambda: "edit" not in namespace.service("chat")["spec"]["selector"], KILLED_S)
        repaired = namespace.service("chat")
        assert proxy.call(hold.release()) == 409
        assert namespace.service("chat") == repaired
    finally:
        proxy.close()
        if leader.is_running():
            leader.stop(signal.SIGKILL)


def test_clocks_that_disagree_by_hours_do_not_matter(kubeconfigs, operators, namespace, admin, tmp_path):
    program = str(REPOSITORY / "tests/cluster/skewed.py")
    ahead, behind = (
        Operator(kubeconfig, tmp_path / f"skewed{skew_s}", (program, str(skew_s)))
        for kubeconfig, skew_s in zip(kubeconfigs, (7200, -7200), strict=True)
    )

    def is_renewed_by_a_clock_off_by(hours):
        renewed = datetime.fromisoformat(lease(admin)["spec"]["renewTime"])
        return abs(renewed - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(hours=1)

    try:
        ahead.start()
        behind.start("standing by")
        assert is_renewed_by_a_clock_off_by(2)
        namespace.apply("before")
        namespace.await_children("before")
        ahead.stop(signal.SIGKILL)
        namespace.apply("after")
        eventually(lambda: namespace.deployment("after"), KILLED_S)
        assert is_renewed_by_a_clock_off_by(-2)
        # And the other way round: to one that is ahead the Lease looks as if it had run out hours ago.
        ahead.start("standing by")
        namespace.apply("last")
        namespace.await_children("last")
        behind.await_role("leading")
    finally:
        for one in (ahead, behind):
            if one.is_running():
                one.stop()


def test_severed_leader_stops_and_the_other_takes_over(operators, kubeconfigs, namespace, tmp_path, audit):
    link = Link(kubeconfigs[0], tmp_path)
    leader, standby = Operator(link.kubeconfig, tmp_path / "severed"), operators[1]
    try:
        leader.start()
        standby.start("standing by")
        namespace.apply("before")
        namespace.await_children("before")
        link.sever()
        namespace.apply("during")
        eventually(lambda: namespace.deployment("during"), KILLED_S)
        eventually(lambda: leader.ask("/readyz")[0] == 503)
        assert "no access to Lease" in leader.ask("/readyz")[1]
        assert leader.probe("/healthz") == 200
        link.mend()
        leader.await_role("standing by")
        # What waited on the way has arrived by now.
        namespace.apply("after")
        namespace.await_children("after")
    finally:
        link.close()
        leader.stop(signal.SIGKILL)


def test_deleted_lease_makes_no_second_leader(pair, namespace, admin):
    admin.delete(f"{LEASES}/{LEASE}")
    eventually(lambda: lease(admin) and lease(admin)["spec"]["holderIdentity"] == "unknown")
    # The leader may go on with what is left of its term; nobody else leads before that, as the audit log is to show.
    namespace.apply("chat")
    eventually(lambda: lease(admin)["spec"]["holderIdentity"] not in {"", "unknown"}, KILLED_S)
    eventually(lambda: namespace.deployment("chat"), KILLED_S)


def test_stolen_lease_is_respected_until_it_runs_out(pair, namespace, admin):
    leader, standby = pair
    admin.merge(f"{LEASES}/{LEASE}", {"spec": {"holderIdentity": "maintenance"}})
    leader.await_role("standing by for maintenance")
    standby.await_role("standing by for maintenance")
    namespace.apply("chat")
    eventually(lambda: namespace.deployment("chat"), KILLED_S)


def test_api_server_that_restarts_finds_one_leader(pair, namespace, api_cluster):
    api_cluster.kill("kube-apiserver")
    eventually(namespace.api.is_up, timeout_s=60)
    eventually(lambda: sorted(one.ask("/readyz")[1].split()[1] for one in pair) == ["leading", "standing"], KILLED_S)
    namespace.apply("after")
    namespace.await_children("after")


def test_two_leases_have_two_leaders(operators, namespace, admin):
    first, second = operators
    # As a release before has left it.
    admin.create(LEASES, {"metadata": {"name": "dedicate-second"}, "spec": {}})
    first.start(DEDICATE_WATCH_NAMESPACES="kube-public")
    second.start(DEDICATE_WATCH_NAMESPACES=namespace.name, DEDICATE_LEASE_NAME="dedicate-second")
    namespace.apply("chat")
    namespace.await_children("chat")
    first.await_role("leading")


def test_missing_right_is_said_and_not_ready(make_account, operator_process, tmp_path):
    kubeconfig = make_account("operator-without-lease", leases=("another",))
    if operator_process.is_running():
        operator_process.stop()
    poor = Operator(kubeconfig, tmp_path / "log")
    poor.start(None)
    try:
        eventually(lambda: "docs/rbac.md" in poor.ask("/readyz")[1], timeout_s=60)
        status, text = poor.ask("/readyz")
        assert status == 503
        assert 'cannot get resource "leases"' in text
        assert any(text in line.get("error", "") for line in poor.records())
        assert poor.probe("/healthz") == 200
    finally:
        assert poor.stop() == 0
