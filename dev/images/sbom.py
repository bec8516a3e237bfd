"""What an image is made of, as a CycloneDX document. Pure: the image's own files tell, by `PROGRAM`, run inside it.

The same image gives the same document. It lists Debian's packages and Python's; our own code is the image itself.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

# Run in the image, by its Python.
PROGRAM = """
import importlib.metadata, json, pathlib
python = [(each.metadata["Name"], each.version, each.metadata.get("License-Expression"))
          for each in importlib.metadata.distributions()]
print(json.dumps({"debian": pathlib.Path("/var/lib/dpkg/status").read_text(), "python": python}))
"""
_SPECIFICATION = "1.6"
_OURS = "dedicate"


@dataclass(frozen=True, order=True)
class Package:
    """One package, by its package URL (https://github.com/package-url/purl-spec)."""

    purl: str
    name: str
    version: str
    licence: str | None = None


def parse_answer(text: str) -> list[Package]:
    """Return the packages that `PROGRAM` found, sorted and each once."""
    answer = json.loads(text)
    python = {
        _build_python_package(name, version, licence) for name, version, licence in answer["python"] if name != _OURS
    }
    return sorted(python | set(_parse_debian(answer["debian"])))


def build_sbom(repository: str, digest: str, version: str, packages: list[Package]) -> dict[str, Any]:
    """Return the document for the image of this digest."""
    purl = f"pkg:oci/{repository}@{quote(digest, safe='')}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": _SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, purl)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": purl,
                "purl": purl,
                "name": repository,
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [_build_component(package) for package in packages],
    }


def _build_component(package: Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
    }
    return component | ({"licenses": [{"expression": package.licence}]} if package.licence else {})


def _build_python_package(name: str, version: str, licence: str | None) -> Package:
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return Package(f"pkg:pypi/{normal}@{quote(version, safe='')}", name, version, licence)


def _parse_debian(status: str) -> list[Package]:
    packages = []
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            # An epoch's colon and a plus are written as they are not in a URL.
            purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={architecture}"
            packages.append(Package(purl, name, version))
    return packages
