"""Start, overload, drain and failure of the program as a whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest


@pytest.fixture
def small(start_runtime, model_folder):
    """A runtime of one's own that runs one sequence and queues one."""
    return start_runtime(model_folder, "--max-num-seqs", "1", "--max-queued-requests", "1")


START_DEADLINE_S = 240
LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True}


def test_loading_overload_and_drain(small):
    """One life: 503 while loading, 429 when full, and a SIGTERM that lets nothing end in silence."""
    small.wait_listening()
    while_loading = small.post("/v1/completions", {"model": small.model, "prompt": "x"})
    assert small.probe("healthz") == 200
    assert small.probe("readyz") == 503
    assert (while_loading.status_code, while_loading.json()["error"]["code"]) == (503, "loading")
    assert 0 < int(while_loading.headers["retry-after"]) <= 120
    small.wait_ready()

    long = {"model": small.model, **LONG}
    with small.stream("/v1/completions", long) as first, ThreadPoolExecutor(1) as pool:
        lines = first.iter_lines()
        next(lines)
        queued = pool.submit(small.post, "/v1/completions", long)
        small.wait_until(lambda: small.metric("dedicate_num_requests_waiting") == 1, deadline_s=30, what="queueing")
        refused = small.post("/v1/completions", long)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 0 < int(refused.headers["retry-after"]) <= 120

        small.terminate()
        small.wait_until(lambda: small.probe("readyz") == 503, deadline_s=5, what="draining")
        # Last calls are taken; there is no room for one here, so it is the queue that refuses until then.
        short = {"model": small.model, "prompt": "x"}
        late = small.wait_until(lambda: _refused(small.post("/v1/completions", short)), deadline_s=15, what="draining")
        assert late == (503, "draining", "close")
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["error"]["code"] == "draining"
        assert queued.result().status_code == 503
    assert small.wait_end() == 0


def _refused(response):
    """Return how it was refused, None while it is for want of room."""
    if response.status_code == 429:
        return None
    return response.status_code, response.json()["error"]["code"], response.headers["connection"]


def test_a_kept_connection_is_answered_once_more_and_closed(start_runtime, model_folder):
    """Within a cluster nobody takes it away from the pod that goes; its client must not find out by an error."""
    runtime = start_runtime(model_folder, "--drain-seconds", "60").wait_ready()
    body = {"model": runtime.model, "prompt": "Once", "max_tokens": 1}
    with httpx.Client(headers=runtime.headers, timeout=60) as client:
        before = client.post(f"{runtime.url}/v1/completions", json=body)
        assert "connection" not in before.headers
        runtime.terminate()
        runtime.wait_until(lambda: runtime.probe("readyz") == 503, deadline_s=5, what="leaving")
        after = client.post(f"{runtime.url}/v1/completions", json=body)
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert runtime.wait_end() == 0


def test_drain_lets_running_answers_finish(start_runtime, model_folder):
    runtime = start_runtime(model_folder, "--drain-seconds", "60").wait_ready()
    body = {"model": runtime.model, "prompt": "Once upon a time", "max_tokens": 40, "ignore_eos": True}
    with runtime.stream("/v1/completions", body) as response:
        lines = response.iter_lines()
        next(lines)
        runtime.terminate()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert runtime.wait_end() == 0


@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_is_late_ends_and_frees_its_blocks(runtime, stream):
    headers = {**runtime.headers, "x-request-timeout": "0.5"}
    response = runtime.post("/v1/completions", {"model": runtime.model, **LONG, "stream": stream}, headers=headers)
    assert response.status_code == (200 if stream else 504)
    assert '"code":"timeout"' in response.text
    runtime.wait_until(lambda: runtime.metric("dedicate_num_requests_running") == 0, deadline_s=30, what="freeing")
    assert runtime.metric("dedicate_kv_cache_free_blocks") == runtime.metric("dedicate_kv_cache_blocks")


def test_lost_engine_comes_back_twice_and_then_ends_the_runtime(start_runtime, model_folder):
    """One life, three losses: an engine that hangs is noticed and replaced, a killed one too, the third is enough."""
    runtime = start_runtime(model_folder, "--stall-seconds", "3").wait_ready()
    body = {"model": runtime.model, **LONG}

    def engine():
        return psutil.Process(runtime.process.pid).children()[0]

    def lose(by):
        """Strike the engine while it streams to one client and answers another; both are told, and so is a third."""
        with runtime.stream("/v1/completions", body) as response, ThreadPoolExecutor(1) as pool:
            lines = response.iter_lines()
            next(lines)
            whole = pool.submit(runtime.post, "/v1/completions", body)
            runtime.wait_until(lambda: runtime.metric("dedicate_requests_in_progress") == 2, deadline_s=30, what="two")
            engine().send_signal(by)
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2][6:])["error"]["code"] == "engine_unavailable"
            assert whole.result().status_code == 503

    for by, cause in ((signal.SIGSTOP, "hung"), (signal.SIGKILL, "died")):
        lose(by)
        refused = runtime.post("/v1/completions", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert 0 < int(refused.headers["retry-after"]) <= 120
        assert (runtime.probe("readyz"), runtime.probe("healthz"), runtime.probe("startupz")) == (503, 200, 200)
        assert runtime.metric(f'dedicate_engine_restarts_total{{cause="{cause}"}}') == 1
        runtime.wait_until(lambda: runtime.probe("readyz") == 200, deadline_s=START_DEADLINE_S, what="coming back")
        assert runtime.complete("The capital of France is", max_tokens=4)["choices"][0]["text"]
    lose(signal.SIGKILL)
    assert runtime.wait_end() == 70
    assert "3 times" in runtime.log.read_text().splitlines()[-1]


def test_liveness_notices_a_hung_step_that_nobody_ends(start_runtime, model_folder):
    """A drain waits for the answers that run, and replaces no engine; that one hangs is what `/healthz` tells."""
    runtime = start_runtime(model_folder, "--stall-seconds", "1", "--drain-seconds", "30").wait_ready()
    with runtime.stream("/v1/completions", {"model": runtime.model, **LONG}) as response:
        lines = response.iter_lines()
        next(lines)
        runtime.terminate()
        runtime.wait_until(lambda: runtime.probe("readyz") == 503, deadline_s=5, what="draining")
        (engine,) = psutil.Process(runtime.process.pid).children()
        assert runtime.probe("healthz") == 200
        engine.suspend()
        runtime.wait_until(lambda: runtime.probe("healthz") == 503, deadline_s=20, what="noticing")
        engine.resume()
        runtime.wait_until(lambda: runtime.probe("healthz") == 200, deadline_s=20, what="going on")
        runtime.terminate()  # once more, as whoever waits may do: it must not cut the answer short
        response.close()
    assert runtime.wait_end() == 0


def test_sigterm_while_loading_ends_at_once(start_runtime, model_folder):
    runtime = start_runtime(model_folder).wait_listening()
    runtime.terminate()
    assert runtime.wait_end() == 0


def ends_with(runtime, code, tmp_path, *words):
    """The start fails with this code, and one sentence on stderr and in the failure file."""
    assert runtime.process.wait(120) == code, runtime.log.read_text()[-2000:]
    sentence = (tmp_path / "failure").read_text()
    assert runtime.log.read_text().endswith(sentence)
    assert sentence.count("\n") == 1
    for word in words:
        assert word in sentence


@pytest.fixture
def failure(tmp_path):
    return ("--failure-file", str(tmp_path / "failure"))


def test_unknown_option_ends_with_2(start_runtime, model_folder, tmp_path, failure):
    ends_with(start_runtime(model_folder, *failure, "--warp", "9"), 2, tmp_path, "--warp")


def test_option_out_of_range_ends_with_2(start_runtime, model_folder, tmp_path, failure):
    ends_with(start_runtime(model_folder, *failure, "--max-num-seqs", "0"), 2, tmp_path, "--max-num-seqs")


def test_taken_port_ends_with_2(runtime, start_runtime, model_folder, tmp_path, failure):
    ends_with(start_runtime(model_folder, *failure, "--port", str(runtime.port)), 2, tmp_path, "--port")


def test_missing_folder_ends_with_10(start_runtime, tmp_path, failure):
    ends_with(start_runtime(tmp_path / "nowhere", *failure), 10, tmp_path, "nowhere")


def test_corrupt_weights_end_with_12(start_runtime, model_folder, tmp_path, failure):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = (model_folder / "model.safetensors").open("rb")
    with whole:
        (broken / "model.safetensors").write_bytes(whole.read(1_000_000))
    ends_with(start_runtime(broken, *failure), 12, tmp_path, "model.safetensors")


def test_missing_tokenizer_ends_with_12(start_runtime, model_folder, tmp_path, failure):
    folder = tmp_path / "mute"
    folder.mkdir()
    for file in model_folder.iterdir():
        if file.name != "tokenizer.json":
            (folder / file.name).symlink_to(file)
    ends_with(start_runtime(folder, *failure), 12, tmp_path, "tokenizer.json")


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a CUDA device")  # noqa: PTH110
def test_cuda_without_a_device_ends_with_14(start_runtime, model_folder, tmp_path, failure):
    ends_with(start_runtime(model_folder, *failure, "--device", "cuda"), 14, tmp_path, "CUDA")
