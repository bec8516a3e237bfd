"""Build the cluster's Go programs from the pinned modules in `go/`, once for each content of a module.

Binaries land in the cache under the hash of the module's files, so a changed pin builds anew and two checkouts
with the same pins share one build. A folder named by KUBEBUILDER_ASSETS goes before our own builds.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dev.cluster.errors import ClusterError, PreconditionError
from dev.cluster.manifests import GATEWAY_API, obtain_manifests
from dev.cluster.plan import Profile
from dev.paths import cache_dir, content_key

_MODULES_FOLDER = Path(__file__).parent / "go"
MIN_GO = (1, 25)


@dataclass(frozen=True)
class GoModule:
    """A pinned module and the programs that it yields: binary name to import path."""

    name: str
    programs: dict[str, str]
    version_symbol: str | None = None
    tags: str = ""

    @property
    def folder(self) -> Path:
        return _MODULES_FOLDER / self.name

    @property
    def output(self) -> Path:
        """Where the binaries are cached; changes with any file of the module."""
        return cache_dir() / "bin" / content_key(sorted(self.folder.iterdir()))

    def linker_flags(self) -> str:
        """Return flags that strip the binaries and, where asked, stamp the pinned version into them."""
        if self.version_symbol is None:
            return "-s -w"
        found = re.search(r"k8s\.io/kubernetes (v1\.(\d+)\.\d+)", (self.folder / "go.mod").read_text())
        if found is None:
            raise ClusterError(f"{self.folder}/go.mod does not pin k8s.io/kubernetes.")
        stamps = {"gitVersion": found[1], "gitMajor": "1", "gitMinor": found[2], "gitTreeState": "clean"}
        return " ".join(["-s -w", *(f"-X {self.version_symbol}.{key}={value}" for key, value in stamps.items())])


KUBERNETES = GoModule(
    "kubernetes",
    {
        program: f"k8s.io/kubernetes/cmd/{program}"
        for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    },
    version_symbol="k8s.io/component-base/version",
)
ETCD = GoModule("etcd", {"etcd": "go.etcd.io/etcd/server/v3"})
COREDNS = GoModule("coredns", {"coredns": "."})
NETWORK_POLICIES = GoModule("network-policies", {"network-policies": "."})
HELM = GoModule("helm", {"helm": "helm.sh/helm/v3/cmd/helm"})
PAUSE = GoModule("pause", {"pause": "."})
# Tests name their targets; without the ways to discover others it builds in a part of the time.
PROMETHEUS = GoModule(
    "prometheus",
    {program: f"github.com/prometheus/prometheus/cmd/{program}" for program in ("prometheus", "promtool")},
    tags="remove_all_sd",
)

# The interpreter that Argo CD runs health checks with.
LUA = GoModule("lua", {"glua": "github.com/yuin/gopher-lua/cmd/glua"})

# Simulates the kubelets of a fleet whose pods are only counted.
KWOK = GoModule("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"})

_MODULES = {
    Profile.API: (ETCD, KUBERNETES),
    Profile.NODE: (ETCD, PAUSE, COREDNS, HELM, KUBERNETES, NETWORK_POLICIES),
}
_FROM_PYTHON_INDEX = {Profile.API: ("kubectl",), Profile.NODE: ("kubectl", "traefik")}


def find_assets(folder: str | None, names: Iterable[str]) -> dict[str, str]:
    """Return those of the named programs that a person's own assets folder holds."""
    if not folder:
        return {}
    candidates = {name: Path(folder) / name for name in names}
    return {name: str(path) for name, path in candidates.items() if os.access(path, os.X_OK)}


def missing_modules(profile: Profile) -> list[GoModule]:
    """Return the modules that have to be built before the profile can start."""
    missing = []
    for module in _MODULES[profile]:
        wanted = set(module.programs) - set(find_assets(os.environ.get("KUBEBUILDER_ASSETS"), module.programs))
        if any(not (module.output / program).exists() for program in wanted):
            missing.append(module)
    return missing


def obtain_binaries(profile: Profile) -> dict[str, str]:
    """Build what is missing and return the path of each program of the profile.

    Raises:
        ClusterError: a build failed; the message names its log.
    """
    missing = missing_modules(profile)
    for number, module in enumerate(missing, start=1):
        build_module(module, f"{number} of {len(missing)}")
    if profile is Profile.NODE:
        obtain_manifests(GATEWAY_API)
    binaries: dict[str, str] = {}
    for module in _MODULES[profile]:
        binaries |= _locate(module)
    return binaries | {name: find_python_tool(name) for name in _FROM_PYTHON_INDEX[profile]}


def obtain_helm() -> str:
    """Return the path of Helm, built from its pinned module where it is not yet; needs no cluster."""
    return _obtain(HELM)["helm"]


def obtain_prometheus() -> dict[str, str]:
    """Return the paths of `prometheus` and `promtool`, built where they are not yet; needs no cluster."""
    return _obtain(PROMETHEUS)


def obtain_lua() -> str:
    """Return the path of a Lua interpreter, built where it is not yet; needs no cluster."""
    return _obtain(LUA)["glua"]


def obtain_kwok() -> str:
    """Return the path of kwok, built where it is not yet; needs no cluster."""
    return _obtain(KWOK)["kwok"]


def _obtain(module: GoModule) -> dict[str, str]:
    wanted = set(module.programs) - set(find_assets(os.environ.get("KUBEBUILDER_ASSETS"), module.programs))
    if any(not (module.output / program).exists() for program in wanted):
        check_go()
        build_module(module, "1 of 1")
    return _locate(module)


def _locate(module: GoModule) -> dict[str, str]:
    built = {program: str(module.output / program) for program in module.programs}
    return built | find_assets(os.environ.get("KUBEBUILDER_ASSETS"), module.programs)


def find_python_tool(name: str) -> str:
    """Return the program `name` that a Python package installed beside the interpreter, or one on PATH."""
    installed = Path(sysconfig.get_path("scripts")) / name
    if installed.exists():
        return str(installed)
    found = shutil.which(name)
    if found is None:
        raise PreconditionError(f"{name} is not installed; run `make venv` and use .venv/bin/python.")
    return found


def check_go() -> None:
    """Raise PreconditionError unless a Go that can build the pinned modules is on PATH."""
    go = shutil.which("go")
    wanted = ".".join(map(str, MIN_GO))
    if go is None:
        raise PreconditionError(f"Go {wanted} or newer is needed to build the cluster, and no `go` is on PATH.")
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    found = re.match(r"go(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < MIN_GO:
        raise PreconditionError(f"Go {wanted} or newer is needed to build the cluster; this is {version}.")


def build_module(module: GoModule, position: str) -> None:
    """Build one module into the cache, showing progress; another process's build of it is waited for."""
    log_path = cache_dir() / "logs" / f"build-{module.name}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    module.output.parent.mkdir(parents=True, exist_ok=True)
    with _build_lock(module), log_path.open("w") as log:
        if all((module.output / program).exists() for program in module.programs):
            return
        title = f"building {module.name} from source ({position})"
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}
        with tempfile.TemporaryDirectory(dir=module.output.parent, prefix=f".{module.name}-") as scratch:
            # 1. Listing the dependencies downloads them and tells how far the build has to go.
            programs = module.programs.values()
            listing = ["list", "-tags", module.tags, "-deps", *programs]
            lines = _run_go(module, listing, environment, log, f"{title}: modules")
            # 2. -v names each package as it is compiled.
            _run_go(
                module,
                [
                    "build",
                    "-v",
                    "-tags",
                    module.tags,
                    "-ldflags",
                    module.linker_flags(),
                    "-o",
                    f"{scratch}/",
                    *programs,
                ],
                environment,
                log,
                title,
                total=len(lines),
            )
            _publish(module, Path(scratch))


def _publish(module: GoModule, scratch: Path) -> None:
    if len(module.programs) == 1:  # `go build` names a single program after its import path's end, e.g. "v3"
        built = next(scratch.iterdir())
        built.rename(scratch / next(iter(module.programs)))
    module.output.mkdir(exist_ok=True)
    for program in module.programs:
        (scratch / program).replace(module.output / program)


def _run_go(
    module: GoModule,
    arguments: list[str],
    environment: dict[str, str],
    log: TextIO,
    title: str,
    *,
    total: int | None = None,
) -> list[str]:
    """Run `go`, copy its output to the log and return its lines."""
    lines: list[str] = []
    command = ["nice", "-n", "5", "go", *arguments]
    with subprocess.Popen(
        command, cwd=module.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        with _progress(title, lines, total):
            for line in process.stdout:
                lines.append(line.rstrip())
                log.write(line)
    if process.returncode != 0:
        raise ClusterError(f"Building {module.name} failed; see {log.name}. The last line: {(lines or ['none'])[-1]}")
    return lines


@contextmanager
def _build_lock(module: GoModule) -> Iterator[None]:
    lock = module.output.parent / f".{module.name}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress(title: str, lines: list[str], total: int | None) -> Iterator[None]:
    """Say what runs, how far it is and for how long, every second on a terminal and else every 15 s."""
    started = time.monotonic()
    finished = threading.Event()
    on_terminal = sys.stderr.isatty()

    def describe() -> str:
        seconds = time.monotonic() - started
        extent = f"{len(lines)} of at most {total} packages, " if total else ""
        return f"{title}: {extent}{seconds:.0f} s"

    def show() -> None:
        while not finished.wait(1 if on_terminal else 15):
            print(
                f"\r\x1b[K{describe()}" if on_terminal else describe(),
                end="" if on_terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        print(f"{chr(13) + chr(27) + '[K' if on_terminal else ''}{describe()}, done", file=sys.stderr, flush=True)
