"""Install each extra alone, from its lock file, and import every module of that side.

Shows that the operator needs none of the runtime's packages and the other way round; the development environment has
both and so can not. Run by `make extras`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # run as a file, so that the Makefile's line needs no -m

from dev.cluster.toolchain import find_python_tool  # noqa: E402
from dev.paths import cache_dir  # noqa: E402

# Imports all modules below a package; `__main__` too, which must do nothing until it is called.
_IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
foreign = [name for name in sys.argv[2:] if importlib.util.find_spec(name)]
if foreign:
    sys.exit(f"installed without need: {', '.join(foreign)}")
print(f"{package.__name__}: {len(names)} modules imported, without {', '.join(sys.argv[2:])}")
"""


@dataclass(frozen=True)
class Side:
    """One extra: its lock, the package that it is for, and what must not come with it."""

    extra: str
    package: str
    foreign: tuple[str, ...]

    @property
    def lock(self) -> Path:
        return REPOSITORY / "requirements" / f"{self.extra}.txt"


SIDES = (
    Side("operator", "dedicate_operator", ("torch", "transformers", "fastapi", "numpy")),
    Side("runtime", "dedicate_runtime", ("kopf", "lightkube", "aiohttp")),
)


def check_side(side: Side, wheel: Path, scratch: Path) -> None:
    """Install one side into an environment of its own and import it.

    Raises:
        subprocess.CalledProcessError: the lock does not install, or a module does not import.
    """
    python = scratch / side.extra / "bin" / "python"
    _uv("venv", "--python", sys.executable, str(scratch / side.extra))
    _uv("pip", "sync", "--require-hashes", "--python", str(python), str(side.lock))
    _uv("pip", "install", "--no-deps", "--python", str(python), str(wheel))
    subprocess.run([str(python), "-I", "-c", _IMPORT_ALL, side.package, *side.foreign], cwd=scratch, check=True)


def main() -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    # In the cache's file system, where packages are linked instead of copied.
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="extras-") as folder:
        scratch = Path(folder)
        _uv(
            "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, str(REPOSITORY)
        )
        (wheel,) = scratch.glob("*.whl")
        for side in SIDES:
            check_side(side, wheel, scratch)


def _uv(*arguments: str) -> None:
    environment = {"UV_CACHE_DIR": str(cache_dir() / "uv" / "cache")} | os.environ
    subprocess.run([find_python_tool("uv"), *arguments, "--quiet"], env=environment, check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:3]))} ... ended with {error.returncode}")
