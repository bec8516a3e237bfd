"""The engine as a process: it serves, it is noticed when it dies, and it never outlives who started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.client import ENGINE_DIED, start_engine
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.errors import ExitCode, StartError

START_DEADLINE_S = 240

PARENT = """
import asyncio, json, sys
from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.engine.client import start_engine

async def main():
    config = EngineConfig(model=sys.argv[1], device=DeviceChoice.CPU, dtype=DtypeChoice.AUTO, max_num_seqs=2,
                          max_num_batched_tokens=32, max_queued_requests=2)
    client = await start_engine(config)
    print(json.dumps({"pid": client.process_id, "torch": "torch" in sys.modules}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def make_config(folder):
    return EngineConfig(
        model=str(folder),
        device=DeviceChoice.CPU,
        dtype=DtypeChoice.AUTO,
        max_num_seqs=2,
        max_num_batched_tokens=32,
        max_queued_requests=2,
        kv_cache_tokens=4096,
    )


def make_request(name, max_tokens):
    sampling = SamplingParams(max_tokens=max_tokens, end_ids=frozenset())
    return Request(request_id=RequestId(name), prompt_token_ids=(1, 2, 3), sampling=sampling)


def wait_until_gone(pid):
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, f"{pid} is still there"
        time.sleep(0.02)


async def test_serves_until_it_is_killed_and_then_says_so(folder):
    async with contextlib.aclosing(await start_engine(make_config(folder))) as client:
        async with asyncio.timeout(START_DEADLINE_S):
            await client.wait_ready()
        assert client.stats.num_generated_tokens > 0  # the first tokens, before anybody asked
        stream = await client.submit([make_request("short", 5)])
        outputs = [output async for output in stream]
        assert sum(len(output.token_ids) for output in outputs) == 5

        endless = await client.submit([make_request("endless", 4000)])
        await anext(endless)
        os.kill(client.process_id, signal.SIGKILL)
        async with asyncio.timeout(30):
            rest = [output async for output in endless]
        assert (rest[-1].finish_reason, rest[-1].error) == (FinishReason.ERROR, ENGINE_DIED)
        assert client.state is EngineState.DEAD


async def test_closing_ends_the_process_in_the_middle_of_a_request(folder):
    client = await start_engine(make_config(folder))
    async with asyncio.timeout(START_DEADLINE_S):
        await client.wait_ready()
    pid = client.process_id
    stream = await client.submit([make_request("endless", 4000)])
    await anext(stream)
    await client.aclose()
    wait_until_gone(pid)


async def test_start_error_of_the_process_is_raised_here(tmp_path):
    client = await start_engine(make_config(tmp_path / "nothing"))
    async with asyncio.timeout(START_DEADLINE_S):
        with pytest.raises(StartError) as caught:
            await client.wait_ready()
    assert caught.value.exit_code is ExitCode.MODEL_NOT_FOUND
    assert str(tmp_path / "nothing") in caught.value.sentence
    await client.aclose()


def test_engine_does_not_outlive_a_parent_that_is_killed_while_it_loads(folder):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with parent:
        started = json.loads(parent.stdout.readline())
        assert not started["torch"], "the API process has loaded torch"
        parent.kill()
    wait_until_gone(started["pid"])
