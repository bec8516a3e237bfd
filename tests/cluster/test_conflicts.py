"""Names and paths that belong to others."""

from __future__ import annotations

import pytest

from tests.cluster.harness import CORE, INGRESSES, SMALLEST, eventually


@pytest.fixture(autouse=True)
def running(operator):
    return operator


@pytest.mark.promise(3)
def test_object_of_somebody_else_is_never_touched(namespace):
    service = {"metadata": {"name": "seallm"}, "spec": {"ports": [{"port": 5432}], "selector": {"app": "postgres"}}}
    stranger = namespace.api.create(namespace.path(CORE, "services"), service)
    namespace.apply("seallm")
    namespace.await_condition("seallm", "Accepted", "False", "NameConflict")
    namespace.await_condition("seallm", "Ready", "False", "NameConflict")
    assert "Service seallm exists" in namespace.message("seallm", "Accepted")
    assert namespace.service("seallm")["metadata"]["resourceVersion"] == stranger["metadata"]["resourceVersion"]
    # Nothing else is made: a route would lead to the stranger.
    assert namespace.ingress("seallm") is None
    assert namespace.deployment("seallm") is None


def test_others_are_served_while_one_is_refused(namespace):
    namespace.api.create(
        namespace.path(CORE, "services"), {"metadata": {"name": "taken"}, "spec": {"ports": [{"port": 1}]}}
    )
    namespace.apply("taken")
    namespace.apply("fine")
    namespace.await_children("fine")
    namespace.await_condition("fine", "Accepted", "True", "Valid")
    namespace.await_condition("taken", "Accepted", "False", "NameConflict")


def test_promise_08_the_oldest_endpoint_has_the_path_and_the_next_takes_over(namespace):
    first = {**SMALLEST, "dedicate": "chat", "route": {"host": f"{namespace.name}.example"}}
    namespace.apply("first", first)
    namespace.await_children("first")
    namespace.await_next_second("first")
    namespace.apply("second", first)
    namespace.await_condition("second", "Accepted", "False", "PathConflict")
    namespace.await_condition("second", "Ready", "False", "PathConflict")
    assert f"{namespace.name}/first" in namespace.message("second", "Accepted")
    assert namespace.ingress("second") is None
    assert "url" not in namespace.endpoint("second")["status"]
    assert namespace.conditions("first")["Accepted"] == ("True", "Valid")
    namespace.delete("first")
    namespace.await_condition("second", "Accepted", "True", "Valid")
    eventually(lambda: namespace.ingress("second"))
    assert namespace.endpoint("second")["status"]["url"] == f"http://{namespace.name}.example:8080/chat/v1"


@pytest.mark.promise(8)
def test_changed_host_settles_a_conflict(namespace):
    spec = {**SMALLEST, "dedicate": "chat", "route": {"host": f"{namespace.name}.example"}}
    namespace.apply("first", spec)
    namespace.await_children("first")
    namespace.await_next_second("first")
    namespace.apply("second", spec)
    namespace.await_condition("second", "Accepted", "False", "PathConflict")
    namespace.merge("second", {"route": {"host": f"other-{namespace.name}.example"}})
    namespace.await_condition("second", "Accepted", "True", "Valid")
    rules = eventually(lambda: namespace.ingress("second"))["spec"]["rules"]
    assert rules[0]["host"] == f"other-{namespace.name}.example"


def test_ingress_paths_of_two_hosts_stand_side_by_side(namespace):
    for name in ("one", "two"):
        namespace.apply(name, {**SMALLEST, "dedicate": "chat", "route": {"host": f"{name}-{namespace.name}.example"}})
    for name in ("one", "two"):
        namespace.await_children(name)
        namespace.await_condition(name, "Accepted", "True", "Valid")
    assert len(namespace.api.items(namespace.path(INGRESSES, "ingresses"))) == 2
