"""Who wrote what and when, by the API server's own record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ACCOUNT = "system:serviceaccount:default:"


@dataclass(frozen=True)
class Write:
    """One request that asked for a change; RFC 3339 times in UTC sort as text."""

    account: str
    verb: str
    resource: str
    name: str
    code: int
    received: str
    answered: str
    holder: str | None

    @property
    def is_void(self) -> bool:
        """Whether it changed nothing: refused because the object is another by now, or given up at its deadline."""
        return self.code in {409, 504}

    def __str__(self) -> str:
        return f"{self.received} {self.account}: {self.verb} {self.resource} {self.name} -> {self.code}"


class AuditLog:
    """What the operators' accounts wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def writes(self, *accounts: str, since: str = "") -> list[Write]:
        """Return the writes of these accounts in the order in which the API server took them up."""
        found = [_parse(json.loads(line)) for line in self._path.read_text().splitlines()]
        return sorted(
            (write for write in found if write.account in accounts and write.received > since),
            key=lambda write: write.received,
        )

    def find_overlaps(self, *accounts: str) -> list[str]:
        """Return each write that reached the API server outside of its writer's term.

        A term begins when the account claims a Lease, and ends when it releases it or another account claims it. A
        write must lie wholly within: taken up after the claim, and answered before the end was asked for.
        """
        writes = self.writes(*accounts)
        claims = [write for write in writes if write.resource == "leases" and write.code < 300]
        terms: list[_Term] = []
        for claim in claims:
            rivals = [term for term in terms if term.lease == claim.name and not term.end]
            if claim.holder in {"", "unknown"}:
                ended = [term for term in rivals if term.account == claim.account and claim.holder == ""]
            else:
                ended = [term for term in rivals if term.account != claim.account]
                if len(ended) == len(rivals):
                    terms.append(_Term(claim.name, claim.account, claim.received))
            for term in ended:
                term.end = claim.received
        return [
            str(write)
            for write in writes
            if write.resource != "leases" and not write.is_void and not any(term.covers(write) for term in terms)
        ]


@dataclass
class _Term:
    """From a claim of a Lease until it is released or claimed by another; empty while it lasts."""

    lease: str
    account: str
    begin: str
    end: str = ""

    def covers(self, write: Write) -> bool:
        is_in_time = self.begin <= write.received and (not self.end or write.answered <= self.end)
        return self.account == write.account and is_in_time


def _parse(event: dict) -> Write:
    reference = event.get("objectRef", {})
    spec = (event.get("requestObject") or {}).get("spec") or {}
    return Write(
        account=event["user"]["username"].removeprefix(ACCOUNT),
        verb=event["verb"],
        resource="/".join(filter(None, (reference.get("resource"), reference.get("subresource")))),
        name=reference.get("name", ""),
        code=event["responseStatus"]["code"] if "responseStatus" in event else 0,
        received=event["requestReceivedTimestamp"],
        answered=event["stageTimestamp"],
        holder=spec.get("holderIdentity", "") if reference.get("resource") == "leases" else None,
    )
