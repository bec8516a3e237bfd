"""An engine that speaks from a script, at our own seam, and a model folder whose tokens are bytes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from dedicate_runtime.api.app import create_app
from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.limits import Limiter
from dedicate_runtime.api.limits_file import parse_limits
from dedicate_runtime.api.readiness import Readiness
from dedicate_runtime.api.served_model import load_served_model
from dedicate_runtime.api.usage import UsageBook
from dedicate_runtime.core.request import EngineStats, FinishReason, ModelInfo, SequenceOutput, TokenLogprobs
from dedicate_runtime.engine.interface import EngineState, SequenceTimes
from dedicate_runtime.errors import EngineUnavailableError, QueueFullError
from dedicate_runtime.metrics import Metrics
from dedicate_runtime.settings import parse_settings

BOS, EOS, END_OF_TURN, PAD = "<s>", "</s>", "<|end|>", "<pad>"
KEY = "sk-unit-test"
CONTEXT = 128
STALL_S = 60.0
STARTED_AT = 1_700_000_000
TEMPLATE = (
    "{% for m in messages %}"
    "{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[' + m.role + ']' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def make_model_folder(folder, *, template=TEMPLATE, generation=None):
    """Write the files of a model whose vocabulary is the 256 bytes and four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BOS, EOS, END_OF_TURN, PAD)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos_id = tokenizer.token_to_id(EOS)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": eos_id}))
    (folder / "generation_config.json").write_text(json.dumps(generation or {"eos_token_id": [eos_id]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": END_OF_TURN}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@dataclass
class Script:
    """What the fake engine says: token ids, or text; how it groups them; and how it fails."""

    tokens: list[int] | None = None
    text: str = "Hello, world."
    group: int = 1
    fail_after: int | None = None
    hang_after: int | None = None
    queue_full: bool = False
    times: tuple = ()
    """Of its sequences, once they have ended."""


class FakeStream:
    """Outputs of one submission, step by step, each sequence in turn."""

    def __init__(self, engine, requests):
        self._engine = engine
        self._requests = requests
        self.is_closed = False
        self.times = [*engine.script.times]

    async def __aiter__(self):
        pending = {request.request_id: self._engine.outputs_for(request) for request in self._requests}
        step = 0
        while pending and not self.is_closed:
            for request_id, outputs in list(pending.items()):
                await asyncio.sleep(0)
                if self._engine.script.hang_after is not None and step >= self._engine.script.hang_after:
                    self._engine.is_hanging.set()
                    await self._engine.closed.wait()
                    return
                if request_id in self._engine.aborted:
                    del pending[request_id]
                    continue
                output = outputs.pop(0)
                if output.finish_reason is FinishReason.ERROR:
                    self._engine.on_failure()
                if not outputs:
                    del pending[request_id]
                yield output
            step += 1

    async def abort(self, request_id):
        self._engine.aborted.append(request_id)

    async def aclose(self):
        self.is_closed = True
        self._engine.closed.set()


@dataclass
class FakeEngine:
    """Implements `engine.interface.Engine` from a script."""

    model: ModelInfo
    tokenizer: object
    script: Script = field(default_factory=Script)
    state: EngineState = EngineState.READY
    requests: list = field(default_factory=list)
    streams: list = field(default_factory=list)
    aborted: list = field(default_factory=list)
    last_progress_s: float = 0.0
    knocks: list = field(default_factory=list)
    refusal: Exception | None = None
    on_failure: Callable[[], None] = lambda: None
    is_hanging: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def stats(self):
        return EngineStats(
            num_running=1,
            num_waiting=2,
            num_free_blocks=3,
            num_blocks=4,
            num_preemptions=5,
            num_prompt_tokens=6,
            num_generated_tokens=7,
            num_steps=8,
            last_step_s=0.5,
        )

    expected_wait_s = None

    def check_room(self, client_id, num_sequences, terms):
        self.knocks.append((client_id, num_sequences, terms))
        if self.refusal is not None:
            raise self.refusal

    async def submit(self, requests, terms):
        if self.script.queue_full:
            raise QueueFullError("full", retry_after_s=2.5)
        if self.state is not EngineState.READY:
            raise EngineUnavailableError("not ready")
        self.requests.extend(requests)
        self.streams.append(FakeStream(self, requests))
        return self.streams[-1]

    async def drain(self, deadline_s):
        self.state = EngineState.DEAD

    async def aclose(self):
        self.state = EngineState.DEAD

    def outputs_for(self, request):
        """Cut the script into outputs the way an engine does: up to the first end id, or to the limit."""
        script, sampling = self.script, request.sampling
        tokens = script.tokens
        if tokens is None:
            tokens = [*self.tokenizer.encode(script.text, add_special_tokens=False).ids, self.end_id]
        produced, reason = [], FinishReason.LENGTH
        for token in tokens[: sampling.max_tokens]:
            produced.append(token)
            if token in sampling.end_ids and len(produced) > sampling.min_tokens:
                reason = FinishReason.STOP
                break
        groups = [produced[i : i + script.group] for i in range(0, len(produced), script.group)]
        outputs = [self._output(request, group) for group in groups]
        if script.fail_after is not None:
            outputs = [
                *outputs[: script.fail_after],
                SequenceOutput(
                    request_id=request.request_id, finish_reason=FinishReason.ERROR, error="The step failed."
                ),
            ]
        else:
            outputs[-1] = self._output(request, groups[-1], reason)
        if sampling.prompt_logprobs:
            prompt = (None, *(self._entry(token, sampling) for token in request.prompt_token_ids[1:]))
            first = outputs[0]
            outputs[0] = SequenceOutput(
                request_id=first.request_id,
                token_ids=first.token_ids,
                logprobs=first.logprobs,
                prompt_logprobs=prompt,
                finish_reason=first.finish_reason,
            )
        return outputs

    @property
    def end_id(self):
        return self.tokenizer.token_to_id(END_OF_TURN)

    def _output(self, request, tokens, reason=None):
        logprobs = ()
        if request.sampling.num_logprobs is not None:
            logprobs = tuple(self._entry(token, request.sampling) for token in tokens)
        return SequenceOutput(
            request_id=request.request_id, token_ids=tuple(tokens), logprobs=logprobs, finish_reason=reason
        )

    @staticmethod
    def _entry(token, sampling):
        others = tuple((other, -math.inf) for other in range(sampling.num_logprobs or 0) if other != token)
        return TokenLogprobs(token, -0.25, ((token, -0.25), *others))


@pytest.fixture
def model_folder(tmp_path):
    return make_model_folder(tmp_path / "model")


@pytest.fixture
def make_times():
    """Give the times of one sequence."""
    return lambda *times: SequenceTimes(
        **dict(zip(("submitted_at", "started_at", "first_token_at", "ended_at"), times, strict=True))
    )


@pytest.fixture
def keys_dir(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "alice").write_text(f"{KEY}\n")
    return folder


@dataclass
class Api:
    """One application over a fake engine, and a client that holds a key."""

    engine: FakeEngine
    readiness: Readiness
    metrics: Metrics
    app: object
    client: httpx.AsyncClient
    limiter: Limiter | None = None

    def script(self, **changes):
        self.engine.script = Script(**changes)

    async def chat(self, content="Hi", **fields):
        body = {"model": "unit/test", "messages": [{"role": "user", "content": content}], **fields}
        return await self.client.post("/unit/v1/chat/completions", json=body)

    async def complete(self, prompt="Hi", **fields):
        return await self.client.post("/unit/v1/completions", json={"model": "unit/test", "prompt": prompt, **fields})

    @property
    def sampling(self):
        """How the last sequence was to be sampled."""
        return self.engine.requests[-1].sampling


@pytest.fixture
def make_api(model_folder, keys_dir):
    """Build an application; options are those of the command line, limits the content of their file."""

    def build(
        *options,
        folder=model_folder,
        serving=True,
        context=CONTEXT,
        limits=None,
        clock=time.monotonic_ns,
        tracer=None,
        make_engine=FakeEngine,
    ):
        settings = parse_settings(
            [
                *("--model", str(folder), "--served-model-name", "unit/test", "--served-model-name", "alias"),
                *("--dedicate", "unit", "--api-keys-dir", str(keys_dir), *options),
            ],
            {},
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        info = ModelInfo(
            folder=str(folder),
            vocab_size=tokenizer.get_vocab_size(),
            max_model_len=context,
            dtype="float32",
            device="cpu",
            attention_backend="fake",
            num_kv_blocks=4,
            block_size=16,
        )
        engine = make_engine(info, tokenizer)
        readiness = Readiness(engine, stall_s=STALL_S)
        if serving:
            readiness.start_serving(load_served_model(info, settings))
        metrics = Metrics(CollectorRegistry())
        keys = KeyRing(keys_dir) if settings.auth.value == "api-key" else None
        limiter = Limiter(parse_limits(limits.encode()), clock=clock) if limits is not None else None
        app = create_app(
            engine,
            readiness=readiness,
            keys=keys,
            limiter=limiter,
            usage=UsageBook(since=STARTED_AT),
            metrics=metrics,
            dedicate="unit",
            request_timeout_s=settings.request_timeout_seconds,
            tracer=tracer,
            logs_prompts=settings.log_prompts,
        )
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://unit.test",
            headers={"Authorization": f"Bearer {KEY}"},
        )
        return Api(engine, readiness, metrics, app, client, limiter)

    return build


@pytest.fixture
def api(make_api):
    return make_api()
