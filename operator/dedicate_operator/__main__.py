"""Start the operator: `python -m dedicate_operator`."""

from __future__ import annotations

import os
import sys

import kopf

from dedicate_operator import handlers  # noqa: F401 - registers the handlers
from dedicate_operator.errors import SettingsError
from dedicate_operator.logs import configure_logging
from dedicate_operator.settings import Settings


def main() -> int:
    """Run until SIGTERM; return 2 if the environment cannot be used, 1 if something else prevents the start."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(f"dedicate-operator: {error}", file=sys.stderr)  # noqa: T201 - logging is not configured yet
        return 2
    configure_logging(settings)
    try:
        kopf.run(
            standalone=True,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
        )
    except Exception as error:
        # kopf wraps what a handler raised, and has logged its sentence; a trace would add nothing to that.
        if isinstance(error.__cause__, kopf.PermanentError):
            return 1
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
