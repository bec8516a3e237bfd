"""The command: `python -m dev.images build|push [operator|runtime|all]`, or `sbom operator|runtime`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from dev.cluster import preconditions
from dev.cluster.api import DEFAULT_NAME, Cluster
from dev.cluster.errors import ClusterError
from dev.cluster.plan import Profile
from dev.images.api import build_images, describe_image, push_images
from dev.images.errors import ImageError
from dev.images.recipe import RECIPES


def main() -> int:
    """Carry out one command, print references or a document on stdout; a failure is one message and status 1."""
    parser = argparse.ArgumentParser(prog="python -m dev.images", description="The images that we ship.")
    parser.add_argument("command", choices=["build", "push", "sbom"])
    parser.add_argument("image", choices=[*RECIPES, "all"], nargs="?", default="all")
    parser.add_argument("--registry", help="host:port, plain HTTP (default: the registry of the local cluster)")
    parser.add_argument("--cluster", default=DEFAULT_NAME, help="name of the local cluster (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.command == "sbom" and arguments.image == "all":
        parser.error("sbom describes one image: operator or runtime")
    names = list(RECIPES) if arguments.image == "all" else [arguments.image]
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    try:
        if os.geteuid() == 0:
            preconditions.install_packages(Profile.NODE, say)
        if arguments.command == "sbom":
            references = [json.dumps(describe_image(arguments.image, say), indent=2)]
        elif arguments.command == "build":
            references = list(build_images(names, say).values())
        else:
            registry = arguments.registry or Cluster(arguments.cluster).registry
            references = [str(reference) for reference in push_images(names, registry, say).values()]
    except (ClusterError, ImageError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(references))
    return 0


if __name__ == "__main__":
    sys.exit(main())
