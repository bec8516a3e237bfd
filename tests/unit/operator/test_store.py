from __future__ import annotations

from dedicate_operator.identity import Key
from dedicate_operator.kinds import CLAIM, DEPLOYMENT, HTTP_ROUTE, POD, SERVICE
from dedicate_operator.manifests import build_service
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.store import Store
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource, pod

CHAT = Key("team", "chat")


def service(version="1", uid="s", name="chat"):
    child = as_child(build_service(parse_endpoint(custom_resource())), version=version, uid=uid)
    child["metadata"]["name"] = name
    return child


def test_endpoint_is_parsed_once_and_kept():
    store = Store(DEFAULTS)
    assert store.put_endpoint(custom_resource()) == {CHAT}
    record = store.record(CHAT)
    assert record.endpoint.spec.dedicate == "chat"
    assert record.claim == (None, "chat")
    assert record.status == {}


def test_unreadable_specification_is_kept_with_its_error():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource(spec={"model": {"uri": "s3://x"}}))
    assert store.record(CHAT).endpoint is None
    assert store.record(CHAT).error.field == "spec.model.uri"


def test_older_version_changes_nothing():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource(version="10"))
    assert store.put_endpoint(custom_resource(version="9")) == set()
    assert store.put_endpoint(custom_resource(version="10")) == set()
    assert store.put_endpoint(custom_resource(version="11")) == {CHAT}


def test_endpoint_made_anew_replaces_the_old_one_and_its_late_deletion_is_ignored():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource(version="10", uid="old"))
    store.put_endpoint(custom_resource(version="12", uid="new"))
    assert store.remove_endpoint(CHAT, "old") == set()
    assert store.record(CHAT).uid == "new"
    assert store.remove_endpoint(CHAT, "new") == {CHAT}
    assert store.record(CHAT) is None


def test_path_belongs_to_the_oldest():
    store = Store(DEFAULTS)
    spec = HUB | {"dedicate": "shared"}
    store.put_endpoint(custom_resource("young", spec, created="2026-01-02T00:00:00Z"))
    assert store.put_endpoint(custom_resource("old", spec, created="2026-01-01T00:00:00Z")) == {
        Key("team", "old"),
        Key("team", "young"),
    }
    claim = (None, "shared")
    assert store.find_route_owner(claim) == Key("team", "old")
    assert Key("team", "young") in store.remove_endpoint(Key("team", "old"))
    assert store.find_route_owner(claim) == Key("team", "young")
    assert store.find_route_owner((None, "other")) is None


def test_uid_decides_between_equals():
    store = Store(DEFAULTS)
    spec = HUB | {"dedicate": "shared"}
    store.put_endpoint(custom_resource("b", spec, uid="1"))
    store.put_endpoint(custom_resource("a", spec, uid="2"))
    assert store.find_route_owner((None, "shared")) == Key("team", "b")


def test_host_makes_another_path_and_a_dying_endpoint_claims_none():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource(spec=HUB | {"route": {"host": "a.example"}}))
    assert store.find_route_owner(("a.example", "chat")) == CHAT
    assert store.find_route_owner((None, "chat")) is None
    store.put_endpoint(custom_resource(version="2", spec=HUB | {"route": {"host": "a.example"}}, deletionTimestamp="x"))
    assert store.find_route_owner(("a.example", "chat")) is None


def test_list_of_endpoints_drops_what_is_gone_and_keeps_what_came_since():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource("gone", version="5"))
    store.put_endpoint(custom_resource("later", version="20"))
    store.put_endpoint(custom_resource("kept", version="6"))
    concerned = store.replace_endpoints(
        None, [custom_resource("kept", version="6"), custom_resource("new", version="7")], "10"
    )
    assert store.keys() == {Key("team", "later"), Key("team", "kept"), Key("team", "new")}
    assert concerned == {Key("team", "gone"), Key("team", "new")}


def test_list_of_one_namespace_says_nothing_of_others():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource())
    assert store.replace_endpoints("elsewhere", [], "10") == set()
    assert store.keys() == {CHAT}


def test_children_are_found_by_their_endpoint():
    store = Store(DEFAULTS)
    assert store.put_child(SERVICE, service()) == {CHAT}
    assert store.put_child(POD, pod("h")) == {CHAT}
    observed = store.observed(CHAT)
    assert observed.children.keys() == {(SERVICE, "chat")}
    assert [item["metadata"]["name"] for item in observed.pods] == ["pod"]
    assert store.put_child(SERVICE, service()) == set()
    assert store.remove_child(SERVICE, service(version="2")) == {CHAT}
    assert store.remove_child(SERVICE, service(version="2")) == set()
    assert store.observed(CHAT).children == {}


def test_late_deletion_of_a_replaced_child_is_ignored():
    store = Store(DEFAULTS)
    store.put_child(SERVICE, service(version="5", uid="new"))
    assert store.remove_child(SERVICE, service(version="4", uid="old")) == set()
    assert (SERVICE, "chat") in store.observed(CHAT).children


def test_child_that_lost_its_label_is_forgotten():
    store = Store(DEFAULTS)
    store.put_child(SERVICE, service(version="1"))
    stripped = service(version="2")
    stripped["metadata"]["labels"] = {}
    assert store.put_child(SERVICE, stripped) == {CHAT}
    assert store.observed(CHAT).children == {}


def test_list_of_children_drops_what_is_gone_and_keeps_what_came_since():
    store = Store(DEFAULTS)
    store.put_child(SERVICE, service(version="3", name="gone", uid="g"))
    store.put_child(SERVICE, service(version="30", name="written-since", uid="w"))
    store.put_child(DEPLOYMENT, service(version="3", name="other-kind", uid="o"))
    assert store.replace_children(SERVICE, None, [service(version="4")], "10") == {CHAT}
    assert store.observed(CHAT).children.keys() == {
        (SERVICE, "chat"),
        (SERVICE, "written-since"),
        (DEPLOYMENT, "other-kind"),
    }
    assert store.replace_children(SERVICE, "elsewhere", [], "99") == set()
    assert store.replace_children(CLAIM, None, [], "99") == set()


def test_answer_to_a_write_does_not_bring_back_what_was_deleted_meanwhile():
    store = Store(DEFAULTS)
    store.put_child(SERVICE, service(version="5"))
    deleted = service(version="7")
    store.bury(deleted)
    assert store.remove_child(SERVICE, deleted) == {CHAT}
    assert store.put_child(SERVICE, service(version="6")) == set()
    assert store.observed(CHAT).children == {}
    # Its label was taken off, which a watch that selects by it tells as a deletion, and has been put back.
    assert store.put_child(SERVICE, service(version="8")) == {CHAT}


def test_answer_to_a_write_does_not_bring_back_an_endpoint():
    store = Store(DEFAULTS)
    resource = custom_resource()
    store.put_endpoint(resource)
    assert store.replace_endpoints(None, [], "9") == {CHAT}
    resource["metadata"]["resourceVersion"] = "8"
    assert store.put_endpoint(resource) == set()
    assert store.keys() == set()


def test_graves_are_bounded():
    store = Store(DEFAULTS)
    for index in range(10_000):
        store.bury(service(version="1", uid=f"uid-{index}"))
    assert store.put_child(SERVICE, service(version="1", uid="uid-0")) == {CHAT}
    assert store.put_child(SERVICE, service(version="1", uid="uid-9999")) == set()


def test_kind_of_some_clusters_is_served_once_it_was_listed_and_concerns_every_endpoint():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource())
    assert not store.is_served(HTTP_ROUTE)
    assert store.is_served(SERVICE)
    assert store.note_served(HTTP_ROUTE, is_served=False) == set()
    assert store.note_served(HTTP_ROUTE, is_served=True) == {CHAT}
    assert store.is_served(HTTP_ROUTE)


def test_children_of_a_kind_that_is_served_no_more_are_gone():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource())
    store.note_served(HTTP_ROUTE, is_served=True)
    store.put_child(HTTP_ROUTE, service())
    assert store.note_served(HTTP_ROUTE, is_served=False) == {CHAT}
    assert store.observed(CHAT).children == {}


def test_path_is_claimed_by_either_kind_of_route_and_by_none_not():
    store = Store(DEFAULTS)
    claims = {
        "ingress": {"type": "Ingress", "host": "a.example"},
        "http-route": {"parentRefs": [{"name": "g"}], "host": "a.example"},
        "anywhere": {},
        "none": {"type": "None"},
    }
    for day, (name, route) in enumerate(claims.items(), 1):
        spec = HUB | {"dedicate": "shared", "route": route}
        store.put_endpoint(custom_resource(name, spec, created=f"2026-01-0{day}T00:00:00Z"))
    assert store.find_route_owner(("a.example", "shared")) == Key("team", "ingress")
    # No host is another place: a request for a named one goes there first.
    assert store.find_route_owner((None, "shared")) == Key("team", "anywhere")
    assert Key("team", "http-route") in store.remove_endpoint(Key("team", "ingress"))
    assert store.find_route_owner(("a.example", "shared")) == Key("team", "http-route")
    assert store.record(Key("team", "none")).claim is None
