"""Lock files: everything pinned and hashed, and no address of a registry, which is each machine's own to choose."""

import json
import re

import pytest

from dev.paths import REPOSITORY

PYTHON_LOCKS = sorted([*REPOSITORY.glob("requirements/*.txt"), *REPOSITORY.glob("bench/peers/*.txt")])
NODE = REPOSITORY / "tests" / "clients" / "node"


@pytest.mark.parametrize("lock", PYTHON_LOCKS, ids=lambda lock: lock.name)
def test_python_packages_are_pinned_and_hashed(lock):
    text = lock.read_text()
    assert "://" not in text
    requirements = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", text).strip())
    assert requirements
    for requirement in requirements:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!]+", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement, requirement[:80]


def test_node_packages_are_pinned_and_hashed():
    wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    assert packages.pop("")["dependencies"] == wanted
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version
    for package in packages.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package


def test_no_compromised_release_is_locked():
    """Reported: LiteLLM 1.82.7, 1.82.8 and 1.107.0. requirements/clients.in stays well before the last."""
    (version,) = re.findall(
        r"^litellm==([\d.]+)", (REPOSITORY / "requirements" / "clients.txt").read_text(), re.MULTILINE
    )
    assert version not in {"1.82.7", "1.82.8"}
    assert tuple(map(int, version.split("."))) < (1, 100)
