"""The composition root inside a cluster: read the plan, prepare files, hand the components to a supervisor."""

from __future__ import annotations

import sys
from pathlib import Path

from dev.cluster import sandbox
from dev.cluster.component import Component
from dev.cluster.control_plane import build_control_plane, write_control_plane_config
from dev.cluster.node import build_node
from dev.cluster.node_config import write_node_config
from dev.cluster.paths import ClusterPaths
from dev.cluster.pki import issue_all
from dev.cluster.plan import ClusterPlan, Profile
from dev.cluster.status import ClusterStatus
from dev.cluster.supervisor import Supervisor


def build_components(plan: ClusterPlan, paths: ClusterPaths) -> tuple[Component, ...]:
    """Return every component of the plan's profile."""
    node = build_node(plan, paths) if plan.profile is Profile.NODE else ()
    return (*build_control_plane(plan, paths), *node)


def main() -> int:
    """Run the cluster whose folder, with the plan in it, is the argument; return an exit status."""
    paths = ClusterPaths(Path(sys.argv[1]))
    plan = ClusterPlan.from_json(paths.plan.read_text())
    issue_all(plan, paths)
    write_control_plane_config(plan, paths)
    if plan.profile is Profile.NODE:
        write_node_config(plan, paths)
        sandbox.enter(plan, paths)
    status = ClusterStatus()
    return Supervisor(
        build_components(plan, paths), paths.logs, status, lambda changed: changed.write(paths.status)
    ).run()


if __name__ == "__main__":
    sys.exit(main())
