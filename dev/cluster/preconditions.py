"""What the machine must offer, checked before anything is changed, and the packages that a node needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from dev.cluster.errors import ClusterError, PreconditionError
from dev.cluster.plan import Profile
from dev.cluster.slots import is_port_free
from dev.cluster.toolchain import check_go, find_python_tool, missing_modules
from dev.paths import cache_dir

_GIB = 1 << 30
# Measured: the builds with Go's caches take 6 GiB; a node with the runtime's image, its layers and the registry 20.
_BUILD_DISK_BYTES = 7 * _GIB
_NODE_DISK_BYTES = 8 * _GIB
_MIN_MEMORY_BYTES = {Profile.API: 1 * _GIB, Profile.NODE: 3 * _GIB}

# Program that shows the package is there, and the Debian package.
NODE_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "docker-registry": "docker-registry",
    "buildah": "buildah",
    "c++": "g++",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}


def check(profile: Profile, ingress_port: int | None) -> None:
    """Raise PreconditionError with one sentence if the profile cannot start here."""
    if profile is Profile.NODE:
        _check_node(ingress_port)
    find_python_tool("kubectl")
    missing = missing_modules(profile)
    if missing:
        check_go()
        _check_disk(cache_dir(), _BUILD_DISK_BYTES, "to build the cluster's programs")
    _check_memory(profile)


def _check_node(ingress_port: int | None) -> None:
    if os.geteuid() != 0:
        raise PreconditionError("A cluster with a node must be started as root: it makes namespaces and a link.")
    if ingress_port is not None and not is_port_free(ingress_port):
        raise PreconditionError(f"Port {ingress_port} on 127.0.0.1 is taken; choose another with INGRESS_PORT=.")
    find_python_tool("traefik")
    if missing_packages() and shutil.which("apt-get") is None:
        raise PreconditionError(f"Please install {', '.join(missing_packages())}; there is no apt-get to do it here.")
    _check_disk(cache_dir(), _NODE_DISK_BYTES, "for images")


def _check_disk(folder: Path, needed: int, purpose: str) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreconditionError(
            f"{needed / _GIB:.0f} GiB are needed {purpose}, and {folder} has {free / _GIB:.1f} free."
        )


def _check_memory(profile: Profile) -> None:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    needed = _MIN_MEMORY_BYTES[profile]
    if available < needed:
        raise PreconditionError(
            f"Profile {profile} needs {needed / _GIB:.0f} GiB of free memory; {available / _GIB:.1f} are available."
        )


def missing_packages() -> list[str]:
    """Return the distribution's packages whose programs are not there."""
    return sorted({package for program, package in NODE_PACKAGES.items() if shutil.which(program) is None})


def install_packages(profile: Profile, say: Callable[[str], None]) -> None:
    """Install what is missing from the distribution, with no service of a package started.

    Raises:
        ClusterError: apt-get failed; the message names the log.
    """
    packages = missing_packages() if profile is Profile.NODE else []
    if not packages:
        return
    say(f"installing from the distribution: {', '.join(packages)}")
    log_path = cache_dir() / "logs" / "apt-get.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    policy = Path("/usr/sbin/policy-rc.d")
    made_policy = not policy.exists()
    if made_policy:  # Debian Policy 9.3.3.1: 101 forbids the action
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        with log_path.open("w") as log:
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            for command in (
                ["update"],
                ["-o", "DPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends", *packages],
            ):
                if subprocess.run(
                    ["apt-get", *command], stdout=log, stderr=log, env=environment, check=False
                ).returncode:
                    raise ClusterError(f"apt-get could not install {', '.join(packages)}; see {log_path}.")
    finally:
        if made_policy:
            policy.unlink()
    _disable_services(packages)


def _disable_services(packages: list[str]) -> None:
    """Keep the services of packages that came for us from starting at the next boot."""
    if Path("/run/systemd/system").exists():
        services = [name for name in ("containerd", "docker-registry") if name in packages]
        subprocess.run(["systemctl", "disable", "--quiet", *services], check=False)
