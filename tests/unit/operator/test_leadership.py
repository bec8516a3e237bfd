"""The election's rules, one by one; test_leadership_model.py has them against each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dedicate_operator.identity import Key
from dedicate_operator.leadership import RENEW_PERIOD_S, Candidate

KEY = Key("dedicate-system", "dedicate")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lease(holder="other_1", version="1", uid="u", **spec):
    metadata = {"name": KEY.name, "namespace": KEY.namespace, "uid": uid, "resourceVersion": version}
    return {"metadata": metadata, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, **spec}}


@pytest.fixture
def candidate():
    return Candidate("me_1", KEY)


def may_claim(candidate, now):
    write = candidate.plan_write(now, NOW)
    return write is not None and write["spec"]["holderIdentity"] == candidate.identity


def test_released_lease_is_taken_at_once(candidate):
    candidate.see(lease(holder="", leaseTransitions=4), now=100)
    claim = candidate.plan_write(100, NOW)
    assert claim["spec"] == {
        "holderIdentity": "me_1",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 5,
    }
    assert claim["metadata"]["resourceVersion"] == "1"
    assert not candidate.leads(100)
    candidate.take_note(claim, sent_at=100, now=101)
    assert candidate.leads(109.9)
    assert not candidate.leads(110)


def test_lease_of_another_is_taken_once_it_stood_still(candidate):
    candidate.see(lease(), now=100)
    candidate.see(lease(), now=110)
    assert candidate.plan_write(114.9, NOW) is None
    assert may_claim(candidate, 115)


def test_lease_that_is_not_there_is_made_in_nobodys_name(candidate):
    assert candidate.plan_write(100, NOW) is None
    candidate.see(None, now=100)
    made = candidate.plan_write(100, NOW)
    assert made["spec"]["holderIdentity"] == "unknown"
    assert "resourceVersion" not in made["metadata"]
    made["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    candidate.take_note(made, sent_at=100, now=101)
    assert not candidate.leads(101)
    assert candidate.must_look
    assert not may_claim(candidate, 115.9)
    assert may_claim(candidate, 116)


def test_each_renewal_begins_the_wait_anew(candidate):
    candidate.see(lease(version="1"), now=100)
    candidate.see(lease(version="2"), now=114)
    assert not may_claim(candidate, 128.9)
    candidate.see(lease(version="2", uid="made anew"), now=128)
    assert not may_claim(candidate, 142.9)


def test_longer_grant_of_another_version_is_respected(candidate):
    candidate.see(lease(leaseDurationSeconds=60), now=100)
    assert not may_claim(candidate, 159.9)
    assert may_claim(candidate, 160)


def test_shorter_grant_is_not_trusted(candidate):
    candidate.see(lease(leaseDurationSeconds=1), now=100)
    assert not may_claim(candidate, 114.9)


def test_times_in_the_lease_count_for_nothing(candidate):
    candidate.see(lease(renewTime="1970-01-01T00:00:00.000000Z"), now=100)
    assert not may_claim(candidate, 114.9)


def test_renewal_keeps_what_is_not_its_own(candidate):
    held = lease("me_1", acquireTime="then", leaseTransitions=3, strategy="x")
    held["metadata"] |= {"labels": {"team": "ml"}, "managedFields": [{}], "creationTimestamp": "then"}
    candidate.take_note(held, sent_at=100, now=100)
    claim = candidate.plan_write(101, NOW + timedelta(seconds=2))
    assert claim["spec"] == held["spec"] | {"renewTime": "2026-01-01T00:00:02.000000Z"}
    kept = {"name": "dedicate", "namespace": "dedicate-system", "uid": "u", "resourceVersion": "1"}
    assert claim["metadata"] == kept | {"labels": {"app.kubernetes.io/managed-by": "dedicate-operator", "team": "ml"}}


def test_release(candidate):
    assert candidate.plan_release(NOW) is None
    candidate.see(lease(), now=100)
    assert candidate.plan_release(NOW) is None
    candidate.take_note(lease("me_1", leaseTransitions=3), sent_at=100, now=100)
    release = candidate.plan_release(NOW)
    assert release["spec"]["holderIdentity"] == ""
    assert release["spec"]["leaseTransitions"] == 3
    assert release["metadata"]["resourceVersion"] == "1"


def test_lost_lease_ends_the_writes_at_once(candidate):
    candidate.take_note(lease("me_1"), sent_at=100, now=100)
    candidate.doubt()
    assert candidate.must_look
    assert candidate.leads(101)
    candidate.see(lease("thief", version="2"), now=101)
    assert not candidate.leads(101)


def test_leader_that_could_not_renew_goes_on_if_nobody_was_quicker(candidate):
    candidate.take_note(lease("me_1"), sent_at=100, now=100)
    candidate.doubt()
    candidate.see(lease("me_1"), now=160)
    assert not candidate.leads(160)
    assert may_claim(candidate, 160)
    claim = candidate.plan_write(160, NOW)
    assert claim["metadata"]["resourceVersion"] == "1"
    assert "leaseTransitions" not in claim["spec"]


def test_pauses(candidate):
    assert candidate.pause_s(100, 1) == 1
    assert candidate.pause_s(100, 0) == pytest.approx(0.8)
    candidate.see(lease(), now=100)
    assert candidate.pause_s(114.7, 1) == pytest.approx(0.3)
    assert candidate.pause_s(116, 1) == 1
    candidate.take_note(lease("me_1"), sent_at=200, now=201)
    assert candidate.pause_s(201, 1) == pytest.approx(RENEW_PERIOD_S - 1)
    candidate.doubt()
    assert candidate.pause_s(201, 1) == 0.5
