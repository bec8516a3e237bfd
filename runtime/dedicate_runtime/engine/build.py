"""Puts scheduler and worker together to an engine that has proved itself. No other module of `engine` loads torch."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging as transformers_logging

from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.engine.starts import WatchedRunner
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler
from dedicate_runtime.worker.build import build_worker
from dedicate_runtime.worker.machine import count_usable_cpus

if TYPE_CHECKING:
    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import ModelInfo
    from dedicate_runtime.engine.engine import Runner
    from dedicate_runtime.engine.starts import StartWatch

_MIN_PREFILL_TOKENS = {"cpu": 16, "cuda": 512}
"""The smallest chunk of a prompt beside others in a step. On CUDA a mixed step has a price of its own, which few tokens
earn back. Both arbitrary within their order."""

_WARM_UP_TOKENS = 64
"""Of prompt: as many as tell what a token of prefill costs, so that the first burst meets a budget."""

_WARM_UP_OUTPUTS = 4

_logger = logging.getLogger(__name__)


def build_engine(config: EngineConfig, starts: StartWatch | None = None) -> tuple[Engine, ModelInfo]:
    """Loads the model and returns once a first token has been computed by the way that every request takes.

    `starts`, where given, sees each launch.

    Raises:
        StartError: with the code and the sentence of what went wrong.
    """
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    # What it warns of at load, such as missing weights, the loader refuses in a sentence of its own.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(count_usable_cpus())
    worker = build_worker(config)
    engine = assemble_engine(config, worker.model, worker.runner, starts)
    _compute_first_token(engine, worker.model)
    return engine, worker.model


def assemble_engine(config: EngineConfig, model: ModelInfo, runner: Runner, starts: StartWatch | None) -> Engine:
    """Puts a scheduler before a runner of `model`."""
    # The API process decides who may wait. What is preempted waits here, too, and may not be what refuses others: it
    # has at most the tokens of all running sequences.
    max_preempted_tokens = config.max_num_seqs * model.max_model_len
    limits = SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_sequences=config.max_sequences,
        max_model_len=model.max_model_len,
        max_queued_tokens=config.max_queued_tokens + max_preempted_tokens,
        min_prefill_tokens=_MIN_PREFILL_TOKENS[model.device.partition(":")[0].partition(" ")[0]],
    )
    blocks = BlockManager(num_blocks=model.num_kv_blocks, block_size=model.block_size)
    scheduler = Scheduler(limits, blocks, has_prefix_cache=config.has_prefix_cache)
    watched = runner if starts is None else WatchedRunner(runner, starts)
    return Engine(scheduler, watched, vocab_size=model.vocab_size)


def _compute_first_token(engine: Engine, model: ModelInfo) -> None:
    """Sends one request through; with it the scheduler learns what steps of both kinds cost."""
    started = time.monotonic()
    num_outputs = min(_WARM_UP_OUTPUTS, model.max_model_len - 1) or 1
    prompt = (0,) * max(min(_WARM_UP_TOKENS, model.max_model_len - num_outputs), 1)
    sampling = SamplingParams(max_tokens=num_outputs, end_ids=frozenset())
    engine.submit([Request(request_id=RequestId("warm-up"), prompt_token_ids=prompt, sampling=sampling)])
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    if not outputs or outputs[-1].error is not None:
        raise StartError(ExitCode.INTERNAL_ERROR, "The engine loaded the model but computed no first token.")
    _logger.info("Computed the first tokens in %.2f s", time.monotonic() - started)
