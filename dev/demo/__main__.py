"""The command: `python -m dev.demo up|down|clean`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dev.chart import ChartError
from dev.cluster.api import DEFAULT_INGRESS_PORT
from dev.cluster.errors import ClusterError
from dev.demo import run
from dev.demo.errors import DemoError
from dev.demo.progress import Progress
from dev.images.errors import ImageError


def main() -> int:
    """Carry out one command; a failure is one message with the log's path, and status 1."""
    arguments = _parse()
    with Progress(run.demo_log()) as progress:
        return _carry_out(arguments, progress)


def _carry_out(arguments: argparse.Namespace, progress: Progress) -> int:
    try:
        if arguments.command == "clean":
            run.remove_caches(progress)
        elif arguments.command == "down":
            if arguments.context:
                run.end_remote(progress, arguments.context)
            else:
                run.end_local(progress)
        elif arguments.context:
            run.run_remote(progress, run.remote_from_environment(arguments.context, arguments.values))
        else:
            run.run_local(progress, ingress_port=arguments.ingress_port)
    except (ChartError, ClusterError, DemoError, ImageError) as error:
        print(f"\n{error}\nDetails: {progress.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.demo", description="From nothing to a served model.")
    parser.add_argument("command", choices=["up", "down", "clean"])
    parser.add_argument("--context", help="use this kubectl context instead of a local cluster")
    parser.add_argument(
        "--values", type=Path, action="append", default=[], metavar="FILE", help="chart values, with --context"
    )
    parser.add_argument(
        "--ingress-port", type=int, default=DEFAULT_INGRESS_PORT, help="on 127.0.0.1 (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
