"""The command: `python -m dev.cluster up|down|status|env|load-image|publish`."""

from __future__ import annotations

import argparse
import shlex
import sys

from dev.cluster.api import DEFAULT_GPUS, DEFAULT_INGRESS_PORT, DEFAULT_NAME, Cluster
from dev.cluster.errors import ClusterError
from dev.cluster.plan import Profile


def main() -> int:
    """Carry out one command; a failure is one message and status 1."""
    arguments = _parse()
    cluster = Cluster(
        arguments.name,
        Profile(arguments.profile),
        gpus=arguments.gpus,
        ingress_port=arguments.ingress_port,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    try:
        return int(arguments.run(cluster, arguments))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, title, summary in (
        (_up, "up", "bring the cluster up and return once it is ready"),
        (_down, "down", "end it and clean what it left"),
        (_status, "status", "say what runs"),
        (_env, "env", "print shell lines that point kubectl at it"),
    ):
        command = commands.add_parser(title, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument("--name", default=DEFAULT_NAME, help="tells clusters apart (default: %(default)s)")
        command.add_argument(
            "--profile", choices=list(Profile), default=Profile.NODE,
            help="api: etcd, API server, controllers, no root; node: all of it (default: %(default)s)",
        )  # fmt: skip
        command.add_argument(
            "--gpus", type=int, default=DEFAULT_GPUS, help="nvidia.com/gpu on the node (default: %(default)s)"
        )
        command.add_argument(
            "--ingress-port", type=int, default=DEFAULT_INGRESS_PORT, help="on 127.0.0.1 (default: %(default)s)"
        )
    return parser.parse_args()


def _up(cluster: Cluster, _arguments: argparse.Namespace) -> int:
    cluster.up()
    status = cluster.status
    took = f" {status.ready_after_s} s after its start" if status else ""
    print(f"Cluster {cluster.name!r} is ready{took}.", file=sys.stderr)
    return _env(cluster, _arguments)


def _down(cluster: Cluster, _arguments: argparse.Namespace) -> int:
    cluster.down()
    return 0


def _status(cluster: Cluster, _arguments: argparse.Namespace) -> int:
    status = cluster.status
    if not cluster.is_up() or status is None:
        print(f"Cluster {cluster.name!r} is down.")
        return 3  # LSB: the program is not running
    print(f"Cluster {cluster.name!r} ({cluster.plan.profile}) is {status.phase}.")
    for name, component in status.components.items():
        ready = "" if component.ready_after_s is None else f"after {component.ready_after_s} s"
        print(f"  {name:24} {component.state:10} {ready:12} restarts {component.num_restarts}")
    return 0


def _env(cluster: Cluster, _arguments: argparse.Namespace) -> int:
    for key, value in cluster.environment().items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
