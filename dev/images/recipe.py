"""What our images are made of, and the key that changes when any of it does.

Pure but for reading the checkout's files. The Dockerfiles are the only place that says how an image is made; this
module says only which files they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dev.paths import REPOSITORY, content_key


@dataclass(frozen=True)
class Recipe:
    """One image: its Dockerfile and the files of the build context that it copies, relative to the checkout."""

    name: str
    dockerfile: Path
    lock: Path
    package: Path

    @property
    def repository(self) -> str:
        """The image's name without registry and tag."""
        return f"dedicate-{self.name}"

    def inputs(self, root: Path = REPOSITORY) -> list[Path]:
        """Return, sorted, every file below `root` that the image depends on."""
        package = (
            path
            for path in (root / self.package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        )
        single = (self.dockerfile, self.lock, Path(".dockerignore"), Path("requirements/uv.txt"))
        return sorted({*package, *(root / file for file in single)})

    def key(self, *, base: str, version: str, root: Path = REPOSITORY) -> str:
        """Hash names and contents of the inputs, the base image's key and the version that the label carries."""
        inputs = self.inputs(root)
        names = "\n".join(str(path.relative_to(root)) for path in inputs)
        return content_key(inputs, salt=f"{base}\n{version}\n{names}")


def _recipe(name: str) -> Recipe:
    return Recipe(
        name=name,
        dockerfile=Path(name) / "Dockerfile",
        lock=Path("requirements") / f"{name}.txt",
        package=Path(name) / f"dedicate_{name}",
    )


RECIPES = {name: _recipe(name) for name in ("operator", "runtime")}


@dataclass(frozen=True)
class ImageReference:
    """An image in a registry, by tag and digest."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """The image's name with its registry, as a chart's `image.repository` wants it."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}@{self.digest}"
