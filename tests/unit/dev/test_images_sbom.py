"""The bill of materials of an image: what its own files say, in CycloneDX."""

from __future__ import annotations

import json

from dev.images.sbom import Package, build_sbom, parse_answer

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: library
 Package: not-a-field

Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13.dfsg-1

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
"""
ANSWER = json.dumps(
    {
        "debian": STATUS,
        "python": [
            ["Typing_Extensions", "4.15.0", "PSF-2.0"],
            ["torch", "2.9.0+cu128", None],
            ["dedicate", "0.1.0", None],
        ],
    }
)


def test_packages_are_read_from_both_worlds_without_ourselves():
    assert parse_answer(ANSWER) == [
        Package("pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64", "libc6", "2.36-9+deb12u10"),
        Package("pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64", "zlib1g", "1:1.2.13.dfsg-1"),
        Package("pkg:pypi/torch@2.9.0%2Bcu128", "torch", "2.9.0+cu128"),
        Package("pkg:pypi/typing-extensions@4.15.0", "Typing_Extensions", "4.15.0", "PSF-2.0"),
    ]


def test_the_document_names_the_image_by_its_digest():
    document = build_sbom("dedicate-operator", "sha256:abc", "0.1.0", parse_answer(ANSWER))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["purl"] == "pkg:oci/dedicate-operator@sha256%3Aabc"
    references = [component["bom-ref"] for component in document["components"]]
    assert len(references) == len(set(references)) == 4
    assert document["components"][-1]["licenses"] == [{"expression": "PSF-2.0"}]
    assert "licenses" not in document["components"][0]


def test_the_same_image_gives_the_same_document():
    one, two = (build_sbom("dedicate-operator", "sha256:abc", "0.1.0", parse_answer(ANSWER)) for _ in range(2))
    other = build_sbom("dedicate-operator", "sha256:abd", "0.1.0", parse_answer(ANSWER))
    assert one == two
    assert other["serialNumber"] != one["serialNumber"]
