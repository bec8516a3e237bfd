"""Our own image store, driven by buildah: build, ask, push, tidy.

Nothing of it is shared with other stores on the machine, and no mount outlives a command: each runs in a mount
namespace of its own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.images.command import run_logged
from dev.images.errors import ImageError
from dev.paths import cache_dir, state_dir

_BUILD_TIMEOUT_S = 1800  # arbitrary: six times what 5.6 GB of dependencies took on two busy cores
_PUSH_TIMEOUT_S = 900
_QUERY_TIMEOUT_S = 60


@dataclass(frozen=True)
class Store:
    """Images below `root`; `run_root` may vanish at any time."""

    root: Path
    run_root: Path
    log: Path

    @classmethod
    def default(cls) -> Store:
        """Return the store that builds share."""
        state = state_dir() / "images"
        return cls(cache_dir() / "images" / "store", state / "run", state / "build.log")

    def build(
        self,
        tag: str,
        *,
        context: Path,
        dockerfile: Path,
        arguments: Mapping[str, str],
        contexts: Mapping[str, Path],
        on_line: Callable[[str], None],
    ) -> None:
        """Build an image, reusing each layer whose inputs are the same.

        Raises:
            ImageError: the build failed; the message names the log.
        """
        command = ["bud", "--isolation=chroot", "--layers", f"--tag={tag}", f"--file={dockerfile}"]
        command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        command += [f"--build-context={name}={folder}" for name, folder in contexts.items()]
        try:
            run_logged(self._command(*command, str(context)), self.log, timeout_s=_BUILD_TIMEOUT_S, on_line=on_line)
        finally:
            self._query("rm", "--all")

    def digest(self, tag: str) -> str | None:
        """Return the digest of the local image, or None where there is none."""
        for image in self._images():
            if tag in image["names"]:
                return str(image["digest"])
        return None

    def push(self, tag: str, destination: str) -> str:
        """Copy an image to a registry that speaks plain HTTP, and return its digest there.

        zstd at its lowest level: the 5.6 GB of dependencies become 2.7, in two thirds of gzip's processor time.

        Raises:
            ImageError: the registry refused it; the message names the log.
        """
        digest_file = self.run_root / "digest"
        self.run_root.mkdir(parents=True, exist_ok=True)
        command = ["push", "--quiet", "--tls-verify=false", "--compression-format=zstd", "--compression-level=1"]
        run_logged(
            self._command(*command, f"--digestfile={digest_file}", tag, f"docker://{destination}"),
            self.log,
            timeout_s=_PUSH_TIMEOUT_S,
        )
        return digest_file.read_text().strip()

    def run(self, tag: str, *command: str) -> str:
        """Run a command in a container of an image, which goes afterwards, and return what it printed.

        Raises:
            ImageError: the command failed.
        """
        container = self._query("from", "--pull=never", tag).strip()
        try:
            return self._query("run", "--isolation=chroot", container, "--", *command)
        finally:
            self._query("rm", container)

    def remove_others(self, keep: str) -> None:
        """Remove the images of the same repository with another tag, and every layer that no image needs."""
        repository = keep.rpartition(":")[0]
        names = {name for image in self._images() for name in image["names"]}
        others = sorted(name for name in names - {keep} if name.rpartition(":")[0] == repository)
        if others:
            self._query("rmi", *others)
            self._query("rmi", "--prune")

    def _images(self) -> list[dict[str, list[str] | str]]:
        if not self.root.exists():
            return []
        listed = json.loads(self._query("images", "--json") or "null") or []
        return [{"names": image["names"] or [], "digest": image["digest"]} for image in listed]

    def _command(self, *arguments: str) -> list[str]:
        options = [f"--root={self.root}", f"--runroot={self.run_root}", "--storage-driver=overlay"]
        return ["unshare", "--mount", "buildah", *options, *arguments]

    def _query(self, *arguments: str) -> str:
        result = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False
        )
        if result.returncode != 0:
            raise ImageError(f"buildah {arguments[0]}: {result.stderr.strip()}")
        return result.stdout
