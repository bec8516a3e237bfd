"""What can go wrong with the local cluster, each as one sentence for the person at the terminal."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster could not do what was asked; the message is one whole sentence."""


class PreconditionError(ClusterError):
    """The machine lacks something; nothing has been changed yet."""
