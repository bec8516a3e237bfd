"""Client libraries in environments of their own, run as programs that know a base URL, a key and the model's name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dev.clients import LM_EVAL, NODE_CLIENTS, PYTHON_CLIENTS, SNIPPETS, build_version_rows

PROBES = Path(__file__).parent / "probes"
PROGRAM_DEADLINE_S = 600  # arbitrary: a busy machine takes a minute for what takes ten seconds alone


@pytest.fixture(scope="session")
def python_clients():
    """The interpreter that has LangChain, LlamaIndex, LiteLLM, `llm` and an older `openai` than ours."""
    PYTHON_CLIENTS.ensure()
    return PYTHON_CLIENTS.python


@pytest.fixture(scope="session")
def lm_eval():
    """The interpreter that has lm-evaluation-harness."""
    LM_EVAL.ensure()
    return LM_EVAL.python


@pytest.fixture(scope="session")
def node_programs(tmp_path_factory):
    """A folder of all our Node programs: Node looks for packages beside the program that imports them."""
    NODE_CLIENTS.ensure()
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(NODE_CLIENTS.modules)
    for program in [*SNIPPETS.glob("*.mjs"), *PROBES.glob("*.mjs")]:
        shutil.copy(program, folder)
    return folder


@pytest.fixture(scope="session")
def base_environment(tmp_path_factory):
    """Nothing of this machine's settings but where programs are; and no library phones home or reads a hub."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LANG": "C.UTF-8",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


@pytest.fixture(scope="session")
def environment(base_environment, runtime):
    """What every program gets, and all that it gets."""
    return {
        **base_environment,
        "OPENAI_BASE_URL": f"{runtime.url}/v1",
        "OPENAI_API_KEY": runtime.key,
        "MODEL": runtime.model,
    }


@pytest.fixture(scope="session")
def run(environment):
    """Run a command to its end; gives what it printed."""

    def run(*command, **more):
        done = subprocess.run(
            command,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=PROGRAM_DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def probe(run, python_clients):
    """Run one of our programs beside this file; gives the JSON object that it prints last."""

    def probe(name, *arguments, python=python_clients, **more):
        return json.loads(run(python, PROBES / name, *map(str, arguments), **more).splitlines()[-1])

    return probe


@pytest.fixture(scope="session")
def node_probe(run, node_programs):
    def probe(name):
        return json.loads(run(NODE_CLIENTS.node, node_programs / name).splitlines()[-1])

    return probe


@pytest.fixture(scope="session", autouse=True)
def lm_eval_probe(request, probe, lm_eval, model_folder, tmp_path_factory):
    """What takes longest runs beside all else from the start; call the value for what it saw."""
    modules = {item.module for item in request.session.items}
    samples = [module.SAMPLES for module in modules if module.__name__.endswith("test_lm_eval")]
    with ThreadPoolExecutor(1) as pool:
        seen = None
        if samples:
            file = tmp_path_factory.mktemp("lm-eval") / "samples.json"
            file.write_text(json.dumps(samples[0]))
            seen = pool.submit(probe, "lm_eval_probe.py", model_folder, file, python=lm_eval)
        yield lambda: seen.result(PROGRAM_DEADLINE_S)


@pytest.fixture(scope="session", autouse=True)
def _summary(ran_against):
    ran_against("clients", ", ".join(f"{package.strip('`')} {version}" for _, package, version in build_version_rows()))
