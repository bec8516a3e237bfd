"""The rights that docs/rbac.md grants, as rules of roles."""

from __future__ import annotations

import re

from tests.cluster.harness import REPOSITORY, Json


def read_rules() -> list[Json]:
    """Return the rules that docs/rbac.md grants for the endpoints."""
    rules = []
    for line in (REPOSITORY / "docs/rbac.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (match := re.fullmatch(r"`(.*)`", cells[0])):
            group = match[1].strip('"')
            verbs = [verb.strip() for verb in cells[2].split(",")]
            rules.append({"apiGroups": [group], "resources": [cells[1].strip("`")], "verbs": verbs})
    assert rules
    return rules


def read_lease_rules(*names: str) -> list[Json]:
    """Return the rules that docs/rbac.md grants for Leases of these names."""
    pattern = r"^\| `(.*)` \| `(.*)` \| `DEDICATE_LEASE_NAME` \| (.*?) \|"
    (row,) = re.findall(pattern, (REPOSITORY / "docs/rbac.md").read_text(), re.MULTILINE)
    verbs = row[2].split(", ")
    return [{"apiGroups": [row[0]], "resources": [row[1]], "resourceNames": list(names), "verbs": verbs}]
