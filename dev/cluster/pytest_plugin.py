"""Clusters as pytest fixtures; they end with the test process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dev.cluster.api import Cluster
from dev.cluster.plan import Profile


def _running(cluster: Cluster) -> Iterator[Cluster]:
    cluster.up(bound_to=os.getpid())
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def api_cluster() -> Iterator[Cluster]:
    """A real API server with etcd and the controllers, and no node; needs no root."""
    yield from _running(Cluster(f"test-{os.getpid()}", Profile.API))


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """A whole cluster with a node that runs pods; needs root."""
    yield from _running(Cluster(f"test-node-{os.getpid()}", Profile.NODE))
