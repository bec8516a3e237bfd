"""What the node is told: configuration files, objects, images, volumes."""

from __future__ import annotations

import json
import tarfile
import tomllib
from pathlib import Path

import pytest

from dev.cluster.addons import build_addons
from dev.cluster.component import check_order
from dev.cluster.content import build_published_volume, find_unreadable
from dev.cluster.control_plane import build_control_plane
from dev.cluster.node import build_node
from dev.cluster.node_config import (
    build_cni_config,
    build_containerd_config,
    build_corefile,
    build_kubelet_config,
)
from dev.cluster.oci import write_scratch_image
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan, Ports, Profile

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")


@pytest.fixture
def plan(tmp_path: Path) -> ClusterPlan:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    binaries = dict.fromkeys(
        (*BINARIES, "coredns", "network-policies", "traefik", "pause", "kubectl", "helm"), str(program)
    )
    return ClusterPlan("one", Profile.NODE, 3, Ports(*range(20000, 20012)), 4, binaries)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterPaths:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = ClusterPaths(tmp_path / "state")
    paths.config.mkdir(parents=True)
    return paths


def test_every_need_of_a_component_exists(plan: ClusterPlan, paths: ClusterPaths) -> None:
    check_order([*build_control_plane(plan, paths), *build_node(plan, paths)])


def test_nothing_listens_on_every_address(plan: ClusterPlan, paths: ClusterPaths) -> None:
    components = [*build_control_plane(plan, paths), *build_node(plan, paths)]
    arguments = " ".join(argument for component in components for argument in component.command)
    files = json.dumps(build_kubelet_config(plan, paths)) + build_corefile(plan, paths, "")
    assert "0.0.0.0" not in arguments + files
    assert not [argument for argument in arguments.split() if argument.startswith(("--address=:", "=:"))]


def test_containerd_keeps_images_in_the_cache_and_all_else_in_the_clusters_folder(
    plan: ClusterPlan, paths: ClusterPaths, tmp_path: Path
) -> None:
    config = tomllib.loads(build_containerd_config(plan, paths, with_cri=True))
    assert config["root"] == str(tmp_path / "cache/dedicate/containerd/slot-3")
    assert config["state"].startswith(str(paths.root))
    assert config["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is True
    sweep = tomllib.loads(build_containerd_config(plan, paths, with_cri=False))
    assert sweep["root"] == config["root"]
    assert sweep["disabled_plugins"] == ["io.containerd.grpc.v1.cri"]


def test_the_kubelet_trusts_nobody_without_a_name(plan: ClusterPlan, paths: ClusterPaths) -> None:
    config = build_kubelet_config(plan, paths)
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["cgroupRoot"] == "/dedicate/3-one"


def test_pods_take_addresses_of_the_slot(plan: ClusterPlan) -> None:
    ranges = build_cni_config(plan)["plugins"][0]["ipam"]["ranges"]
    assert ranges == [[{"subnet": "10.115.0.0/16"}]]


@pytest.mark.parametrize(
    ("resolv_conf", "forwards"),
    [("nameserver 192.0.2.1\n", True), ("nameserver fe80::1%eth0", True), ("search x\n", False)],
)
def test_names_of_the_world_are_asked_for_only_where_there_is_a_resolver(
    plan: ClusterPlan, paths: ClusterPaths, resolv_conf: str, forwards: bool
) -> None:
    assert ("forward . " in build_corefile(plan, paths, resolv_conf)) is forwards


def test_each_add_on_lies_where_its_name_says(plan: ClusterPlan) -> None:
    for path, manifest in build_addons(plan).items():
        assert path.endswith(f"/{manifest['metadata']['name']}")
        assert f"/{manifest['apiVersion']}/" in path


def test_no_component_may_do_everything(plan: ClusterPlan) -> None:
    roles = [manifest for manifest in build_addons(plan).values() if manifest["kind"] == "ClusterRole"]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_an_image_is_the_same_however_often_it_is_written(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    for name in ("one.tar", "two.tar"):
        write_scratch_image(tmp_path / name, "dedicate.local/pause:1", program)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        index = json.load(archive.extractfile("index.json"))
        for entry in index["manifests"]:
            algorithm, _, digest = entry["digest"].partition(":")
            manifest = json.load(archive.extractfile(f"blobs/{algorithm}/{digest}"))
        layer = archive.extractfile(f"blobs/sha256/{manifest['layers'][0]['digest'].partition(':')[2]}")
        with tarfile.open(fileobj=layer) as files:
            assert [(entry.name, entry.mode) for entry in files] == [("pause", 0o755)]


def test_a_published_folder_is_bound_to_its_claim_alone() -> None:
    volume, claim = build_published_volume(Path("/models/smollm"), "smollm", "demo")
    assert volume["spec"]["claimRef"] == {"namespace": "demo", "name": "smollm"}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_a_folder_that_pods_cannot_read_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weights = tmp_path / "sub" / "model.safetensors"
    weights.write_bytes(b"")
    for folder in (tmp_path, tmp_path / "sub"):
        folder.chmod(0o755)
    weights.chmod(0o644)
    assert find_unreadable(tmp_path) is None
    weights.chmod(0o600)
    assert find_unreadable(tmp_path) == weights
