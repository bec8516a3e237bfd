"""What can go wrong with the demonstration, each as one sentence for the person at the terminal."""

from __future__ import annotations


class DemoError(Exception):
    """The demonstration could not go on; the message is one whole sentence and says what to do where that is known."""
