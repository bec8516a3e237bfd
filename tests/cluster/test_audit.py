"""What the look at the audit log finds by which the tests of leadership end; needs no API server."""

from __future__ import annotations

import json

import pytest

from tests.cluster.audit import ACCOUNT, AuditLog


def event(account, second, resource="deployments", *, holder=None, code=200, answered=None, lease="lease"):
    """One line of the log; a Lease is written by whoever names a holder."""
    return {
        "user": {"username": f"{ACCOUNT}{account}"},
        "verb": "update",
        "objectRef": {"resource": resource, "name": lease if resource == "leases" else "chat"},
        "responseStatus": {"code": code},
        "requestReceivedTimestamp": f"2026-01-01T00:00:{second:02}.000000Z",
        "stageTimestamp": f"2026-01-01T00:00:{answered or second:02}.000000Z",
        **({} if holder is None else {"requestObject": {"spec": {"holderIdentity": holder}}}),
    }


def claim(account, second, **options):
    return event(account, second, "leases", **{"holder": account, **options})


@pytest.fixture
def find(tmp_path):
    def find(*events):
        path = tmp_path / "audit.log"
        path.write_text("".join(json.dumps(item) + "\n" for item in events))
        return AuditLog(path).find_overlaps("a", "b")

    return find


def test_writes_of_one_term_after_another_are_none(find):
    assert find(claim("a", 1), event("a", 2), claim("a", 3), event("a", 4), claim("b", 5), event("b", 6)) == []


@pytest.mark.parametrize(
    "events",
    [
        [event("a", 1), claim("a", 2)],
        [claim("a", 1), event("b", 2)],
        [claim("a", 1), claim("b", 2), event("a", 3)],
        [claim("a", 1), event("a", 2, answered=4), claim("b", 3)],
        [claim("a", 1), claim("a", 2, holder=""), event("a", 3)],
        [claim("a", 1), claim("b", 2, code=409), event("b", 3)],
        [claim("a", 1), claim("b", 2, holder="unknown"), event("b", 3)],
        [claim("a", 1), claim("b", 2, lease="other"), claim("b", 3), event("a", 4)],
    ],
    ids=[
        "before the claim",
        "without a claim",
        "after another's claim",
        "answered after another's claim",
        "after the release",
        "after a claim that was refused",
        "after a Lease was made for nobody",
        "after another's claim of the same Lease",
    ],
)
def test_write_outside_of_its_writers_term_is_found(find, events):
    assert len(find(*events)) == 1


def test_each_lease_has_terms_of_its_own(find):
    assert find(claim("a", 1), claim("b", 2, lease="other"), event("a", 3), event("b", 4)) == []


def test_a_lease_made_for_nobody_ends_no_term(find):
    assert find(claim("a", 1), claim("b", 2, holder="unknown"), event("a", 3)) == []


@pytest.mark.parametrize("code", [409, 504])
def test_write_that_changed_nothing_is_none(find, code):
    assert find(claim("a", 1), event("b", 2, code=code)) == []
