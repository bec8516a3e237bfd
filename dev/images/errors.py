"""What can go wrong with images, each as one sentence for the person at the terminal."""

from __future__ import annotations


class ImageError(Exception):
    """An image could not be built or pushed; the message is one whole sentence and names the log where there is one."""
