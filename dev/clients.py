"""The client libraries that tests/clients drives a live server with, and the examples that docs/clients.md shows.

`python -m dev.clients install` installs them all; the tests do so where they are first used. `lock-node` resolves the
Node packages again.
"""

from __future__ import annotations

import argparse

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
