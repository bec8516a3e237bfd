"""Images as developers and tests use them: have them built, have them in a registry."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dev.images import base, sbom
from dev.images.command import run_logged
from dev.images.errors import ImageError
from dev.images.recipe import RECIPES, ImageReference, Recipe
from dev.images.store import Store
from dev.paths import REPOSITORY, cache_dir

Say = Callable[[str], None]

_PREFETCH_TIMEOUT_S = 1800
_COMPILE_TIMEOUT_S = 600
_REGISTRY_TIMEOUT_S = 10
_LOCK_TIMEOUT_S = 3600
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def build_images(names: Iterable[str], say: Say) -> dict[str, str]:
    """Return `localhost/...:key@digest` of each image by name; what is unchanged since its last build is not built.

    Raises:
        ImageError: the machine lacks something or a build failed.
    """
    _check_machine()
    store = Store.default()
    with _locked():
        tags = {name: _ensure_built(store, RECIPES[name], say) for name in names}
        return {name: f"{tag}@{store.digest(tag)}" for name, tag in tags.items()}


def push_images(names: Iterable[str], registry: str, say: Say) -> dict[str, ImageReference]:
    """Return where each image is in the registry (`host:port`, plain HTTP), building and pushing what is not there.

    Raises:
        ImageError: the machine lacks something, a build failed, or the registry does not answer.
    """
    return {name: _ensure_pushed(RECIPES[name], registry, say) for name in names}


def describe_image(name: str, say: Say) -> dict[str, Any]:
    """Return the CycloneDX document of an image, read from its own files; one that is not there is built.

    Raises:
        ImageError: the machine lacks something, a build failed, or the image does not tell.
    """
    _check_machine()
    store, recipe = Store.default(), RECIPES[name]
    with _locked():
        tag = _ensure_built(store, recipe, say)
        packages = sbom.parse_answer(store.run(tag, "python", "-c", sbom.PROGRAM))
        digest = store.digest(tag)
    return sbom.build_sbom(recipe.repository, str(digest), _version(), packages)


def are_images_built(names: Iterable[str]) -> bool:
    """Tell whether the images of this checkout are in the store; reads it, changes nothing."""
    if shutil.which("buildah") is None:
        return False
    store = Store.default()
    return all(store.digest(_local_tag(RECIPES[name], REPOSITORY)) is not None for name in names)


def image_key(recipe: Recipe, root: Path = REPOSITORY) -> str:
    """Return the tag of the image that the files below `root` make."""
    return recipe.key(base=base.KEY, version=_version(), root=root)


def _ensure_pushed(recipe: Recipe, registry: str, say: Say) -> ImageReference:
    key = image_key(recipe)
    digest = find_digest(registry, recipe.repository, key)
    if digest is None:
        _check_machine()
        store = Store.default()
        with _locked():
            tag = _ensure_built(store, recipe, say)
            key = tag.rpartition(":")[2]
            say(f"image {recipe.name}: pushing what {registry} lacks")
            digest = store.push(tag, f"{registry}/{recipe.repository}:{key}")
    return ImageReference(registry, recipe.repository, key, digest)


def find_digest(registry: str, repository: str, tag: str) -> str | None:
    """Ask a registry for the digest behind a tag; None where it has no such tag.

    Raises:
        ImageError: the registry does not answer.
    """
    url = f"http://{registry}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _MANIFESTS})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the registry is on this machine
    try:
        with opener.open(request, timeout=_REGISTRY_TIMEOUT_S) as answer:
            return str(answer.headers["Docker-Content-Digest"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise ImageError(f"The registry at {registry} answers {error.code} for {repository}:{tag}.") from error
    except OSError as error:
        raise ImageError(f"The registry at {registry} does not answer: {error}.") from error


def _ensure_built(store: Store, recipe: Recipe, say: Say) -> str:
    tag = _local_tag(recipe, REPOSITORY)
    if store.digest(tag) is not None:
        return tag
    base_tag = _ensure_base(store, say)
    packages = _prefetch(recipe, store.log, say)
    step = _StepTeller(recipe.name, say)
    with _snapshot(recipe) as context:
        tag = _local_tag(recipe, context)
        store.build(
            tag,
            context=context,
            dockerfile=context / recipe.dockerfile,
            # No node here has a GPU, so nothing is compiled in a pod.
            arguments={"BASE_IMAGE": base_tag, "VERSION": _version(), "COMPILER": ""},
            contexts={"packages": packages, "installer": Path(sys.prefix), **_compile_kernels(recipe, context, say)},
            on_line=step.read,
        )
    store.remove_others(tag)
    return tag


def _local_tag(recipe: Recipe, root: Path) -> str:
    return f"localhost/{recipe.repository}:{image_key(recipe, root)}"


def _ensure_base(store: Store, say: Say) -> str:
    tag = f"localhost/dedicate-base:{base.KEY}"
    if store.digest(tag) is None:
        folder = base.ensure_base_archive(store.log, say)
        store.build(
            tag, context=folder, dockerfile=base.DOCKERFILE, arguments={}, contexts={}, on_line=lambda _line: None
        )
        store.remove_others(tag)
    return tag


def _prefetch(recipe: Recipe, log: Path, say: Say) -> Path:
    """Return uv's cache with every package of the lock in it, each checked against its hash.

    The development environment has fetched most of them already; links instead of copies make this cheap.
    """
    cache = Path(os.environ.get("UV_CACHE_DIR") or cache_dir() / "uv" / "cache")
    say(f"image {recipe.name}: fetching the packages of {recipe.lock}")
    with tempfile.TemporaryDirectory() as target:
        command = [str(Path(sys.prefix) / "bin" / "uv"), "pip", "install", "--no-deps", "--require-hashes"]
        command += [f"--python-version={base.PYTHON_VERSION}", "--link-mode=symlink", f"--target={target}"]
        run_logged(
            [*command, f"--requirement={REPOSITORY / recipe.lock}"],
            log,
            timeout_s=_PREFETCH_TIMEOUT_S,
            environment=os.environ | {"UV_CACHE_DIR": str(cache)},
        )
    return cache


def _compile_kernels(recipe: Recipe, context: Path, say: Say) -> dict[str, Path]:
    """Compile what the image takes in compiled form, as its Dockerfile does; libraries that are there already are kept.

    The folder lies beside the sources in `context`, where nothing is copied from.
    """
    script = context / recipe.package / "worker" / "native" / "build.py"
    if not script.exists():
        return {}
    say(f"image {recipe.name}: compiling the CPU kernels")
    cache = cache_dir() / "kernels"
    command = [sys.executable, str(script), "--to", str(cache)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if result.returncode != 0:
        raise ImageError(f"The CPU kernels do not compile: {result.stderr.strip().splitlines()[-1]}")
    folder = context / "kernels"
    folder.mkdir()
    for library in result.stdout.split():
        shutil.copy(library, folder)
    return {"kernels": folder}


@contextmanager
def _snapshot(recipe: Recipe) -> Iterator[Path]:
    """Give a copy of exactly the files that the recipe names, so that an edit meanwhile cannot part image and key."""
    with tempfile.TemporaryDirectory() as scratch:
        for source in recipe.inputs():
            target = Path(scratch) / source.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        yield Path(scratch)


class _StepTeller:
    """Turn a build's output into lines for a person."""

    _STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP (\d+)/(\d+): (RUN .*|COPY .*)")

    def __init__(self, name: str, say: Say) -> None:
        self._name = name
        self._say = say

    def read(self, line: str) -> None:
        match = self._STEP.match(line)
        if match:
            what = "dependencies" if "uv pip sync" in match[3] else match[3][:60]
            self._say(f"image {self._name}: step {match[1]} of {match[2]}: {what}")


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise ImageError("Images must be built as root here: buildah and debootstrap change roots.")
    if platform.system() != "Linux":
        raise ImageError("Images are built on Linux only.")
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            raise ImageError(f"{program} is not installed; `python -m dev.images` installs it where apt-get is there.")


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time use the store."""
    folder = cache_dir() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock", timeout=_LOCK_TIMEOUT_S):
        yield


def _version() -> str:
    return str(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"])
