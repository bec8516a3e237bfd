"""The command: `python -m dev.cluster up|down|status|env|build|load-image|publish`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from dev.cluster.api import DEFAULT_GPUS, DEFAULT_INGRESS_PORT, DEFAULT_NAME, Cluster
from dev.cluster.errors import ClusterError
from dev.cluster.plan import Profile
from dev.cluster.toolchain import check_go, missing_modules, obtain_binaries, obtain_lua, obtain_prometheus


def main() -> int:
    """Carry out one command; a failure is one message and status 1."""
    arguments = _build_parser().parse_args()
    try:
        return int(arguments.run(arguments))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; a cluster that was starting goes on to start, and `down` ends it.", file=sys.stderr)
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(title: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(title, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument("--name", default=DEFAULT_NAME, help="tells clusters apart (default: %(default)s)")
        return command

    up = add("up", _up, "bring the cluster up and return once it is ready")
    up.add_argument(
        "--profile", choices=list(Profile), default=Profile.NODE, type=Profile,
        help="api: etcd, API server, controllers, no root; node: all of it (default: %(default)s)",
    )  # fmt: skip
    up.add_argument("--gpus", type=int, default=DEFAULT_GPUS, help="nvidia.com/gpu on the node (default: %(default)s)")
    up.add_argument(
        "--ingress-port", type=int, default=DEFAULT_INGRESS_PORT,
        help="of the ingress controller on 127.0.0.1; 0 for any free one (default: %(default)s)",
    )  # fmt: skip
    add("down", _down, "end the cluster and clean what it left")
    add("status", _status, "say what runs")
    add("env", _env, "print shell lines that point kubectl at the cluster")
    build = add("build", _build, "build the programs that a cluster runs, Helm and Prometheus, ahead of time")
    build.add_argument("--profile", choices=list(Profile), default=Profile.NODE, type=Profile)
    load = add("load-image", _load_image, "push an image to the registry and print the reference that pods use")
    load.add_argument("source", help="a name in buildah's storage, or an OCI archive")
    load.add_argument("image", help="repository and tag, such as dedicate/runtime:dev")
    publish = add("publish", _publish, "offer a folder of this machine, for reading, as a claim")
    publish.add_argument("folder", type=Path)
    publish.add_argument("claim")
    publish.add_argument("--namespace", default="default", help="must exist (default: %(default)s)")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _up(arguments: argparse.Namespace) -> int:
    cluster = Cluster(
        arguments.name, arguments.profile, gpus=arguments.gpus, ingress_port=arguments.ingress_port or None, say=_say
    )
    cluster.up()
    status = cluster.status
    _say(f"Cluster {cluster.name!r} is ready{f' {status.ready_after_s} s after its start' if status else ''}.")
    return _env(arguments)


def _down(arguments: argparse.Namespace) -> int:
    Cluster(arguments.name).down()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name)
    status = cluster.status
    if not cluster.is_up() or status is None:
        print(f"Cluster {cluster.name!r} is down.")
        return 3  # LSB: the program is not running
    print(f"Cluster {cluster.name!r} ({cluster.plan.profile}) is {status.phase}.")
    for name, component in status.components.items():
        ready = "" if component.ready_after_s is None else f"after {component.ready_after_s} s"
        print(f"  {name:24} {component.state:10} {ready:14} restarts {component.num_restarts}")
    return 0


def _env(arguments: argparse.Namespace) -> int:
    for key, value in Cluster(arguments.name).environment().items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    if missing_modules(arguments.profile):
        check_go()
    obtain_binaries(arguments.profile)
    obtain_prometheus()
    obtain_lua()
    return 0


def _load_image(arguments: argparse.Namespace) -> int:
    print(Cluster(arguments.name).load_image(arguments.source, arguments.image))
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    Cluster(arguments.name).publish_folder(arguments.folder, arguments.claim, arguments.namespace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
