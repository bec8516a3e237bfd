"""The engine on a CUDA device: dtype, sizes and tokens. Models are made here: the machine may have no network."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dedicate_runtime.core.config import AttentionChoice, DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import build_engine
from dedicate_runtime.errors import ExitCode, StartError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

VOCAB_SIZE = 1024
NUM_NEW_TOKENS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return {
        f"p{length}": torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
        for length in (1, 9, 60, 200)
    }


def make_config(folder, **fields):
    base = {
        "device": DeviceChoice.CUDA,
        "dtype": DtypeChoice.FLOAT32,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "max_queued_requests": 8,
        "kv_cache_tokens": 4096,
    }
    return EngineConfig(model=str(folder), **{**base, **fields})


def run(engine, prompts, **sampling):
    fields = {"max_tokens": NUM_NEW_TOKENS, "end_ids": frozenset(), "temperature": 0.0, **sampling}
    requests = [
        Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=SamplingParams(**fields))
        for name, prompt in prompts.items()
    ]
    assert not engine.submit(requests)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    assert [output.error for output in outputs if output.error] == []
    return {
        name: [token for output in outputs if output.request_id == name for token in output.token_ids]
        for name in prompts
    }


def test_greedy_tokens_are_those_of_generate_in_float32(folder, prompts):
    original = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", device_map="cuda"
    )
    expected = {}
    for name, prompt in prompts.items():
        ids = original.generate(
            torch.tensor([prompt], device="cuda"),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64, device="cuda"),
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        expected[name] = ids[0, len(prompt) :].tolist()
    engine, model = build_engine(make_config(folder))
    assert model.attention_backend == "triton"
    assert run(engine, prompts) == expected
    short = {name: prompts[name] for name in ("p1", "p9")}
    tight, _ = build_engine(make_config(folder, kv_cache_tokens=64, max_model_len=48))
    assert run(tight, short) == {name: expected[name] for name in short}
    assert tight.stats.num_preemptions > 0


def test_automatic_choices_are_bfloat16_and_a_cache_from_free_memory(folder, prompts):
    engine, model = build_engine(
        make_config(folder, device=DeviceChoice.AUTO, dtype=DtypeChoice.AUTO, kv_cache_tokens=None)
    )
    assert model.dtype == "bfloat16"
    assert model.device.startswith("cuda")
    assert model.num_kv_blocks * model.block_size == 8 * 512
    assert run(engine, prompts, seed=3, temperature=0.8) == run(engine, prompts, seed=3, temperature=0.8)


def test_bfloat16_logprobs_are_near_those_of_one_forward(folder, prompts):
    engine, _ = build_engine(make_config(folder, dtype=DtypeChoice.BFLOAT16))
    prompt = prompts["p60"]
    sampling = SamplingParams(max_tokens=1, end_ids=frozenset(), num_logprobs=0, prompt_logprobs=True)
    engine.submit([Request(request_id=RequestId("a"), prompt_token_ids=tuple(prompt), sampling=sampling)])
    (output,) = engine.step()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
    with torch.inference_mode():
        reference = model(torch.tensor([prompt], device="cuda")).logits[0].float().log_softmax(-1)
    for position, entry in enumerate(output.prompt_logprobs[1:]):
        assert entry.logprob == pytest.approx(reference[position, entry.token_id].item(), abs=0.25)


@pytest.mark.parametrize("backend", [AttentionChoice.TORCH, AttentionChoice.TRITON])
def test_every_backend_gives_the_same_tokens(folder, prompts, backend):
    engine, model = build_engine(make_config(folder, attention_backend=backend))
    assert model.attention_backend == backend.value
    reference, _ = build_engine(make_config(folder))
    sampling = {"seed": 7, "temperature": 1.2}
    assert run(engine, prompts, **sampling) == run(reference, prompts, **sampling)


def test_deterministic_answers_are_the_same_in_any_company(folder, prompts):
    engine, _ = build_engine(make_config(folder, dtype=DtypeChoice.BFLOAT16, is_deterministic=True))
    sampling = {"seed": 7, "temperature": 1.2, "num_logprobs": 0}
    together = run(engine, prompts, **sampling)
    assert {name: run(engine, {name: prompt}, **sampling)[name] for name, prompt in prompts.items()} == together


def test_cache_that_the_device_does_not_hold(folder):
    with pytest.raises(StartError) as caught:
        build_engine(make_config(folder, kv_cache_tokens=10**12))
    assert caught.value.exit_code is ExitCode.OUT_OF_MEMORY
