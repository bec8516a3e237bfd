"""lm-evaluation-harness on the same samples by its `hf` backend and by our endpoints, as one JSON object.

Arguments: the model's folder, a file with samples: `{"pairs": [[context, continuation], ...], "text": ...}`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.utils import RemoteTokenizer

folder, samples = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
base_url, key, model = (os.environ[name] for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "MODEL"))
completions = {"model": model, "base_url": f"{base_url}/completions"}


def instances(kind: str, arguments: Sequence[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=argument, idx=index) for index, argument in enumerate(arguments)
    ]


pairs = instances("loglikelihood", [tuple(pair) for pair in samples["pairs"]])
rolling = instances("loglikelihood_rolling", [(samples["text"],)])
seen = {}

reference = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)
seen["num_tokens"] = [
    len(reference.tok_encode(context + continuation)) - len(reference.tok_encode(context))
    for context, continuation in samples["pairs"]
]
seen["hf"] = reference.loglikelihood(pairs, disable_tqdm=True)
seen["hf_rolling"] = reference.loglikelihood_rolling(rolling, disable_tqdm=True)

token_ids = LocalCompletionsAPI(**completions, tokenizer_backend="huggingface", tokenizer=folder, batch_size=8)
seen["token_ids"] = token_ids.loglikelihood(pairs, disable_tqdm=True)
seen["token_ids_rolling"] = token_ids.loglikelihood_rolling(rolling, disable_tqdm=True)

strings = LocalCompletionsAPI(
    **completions, tokenizer_backend="huggingface", tokenizer=folder, tokenized_requests=False, batch_size=8
)
seen["strings"] = strings.loglikelihood(pairs, disable_tqdm=True)

# The harness asks whether the server has a tokenizer, and takes it.
remote = LocalCompletionsAPI(**completions, auth_token=key, num_concurrent=4)
seen["remote"] = remote.loglikelihood(pairs, disable_tqdm=True)
seen["remote_backend"] = remote.tokenizer_backend

tokenizer = RemoteTokenizer(completions["base_url"], auth_token=key)
ids = reference.tok_encode(samples["text"])
seen["same_ids"] = tokenizer.encode(samples["text"]) == ids
seen["round_trip"] = tokenizer.decode(ids) == samples["text"]
seen["special_ids"] = [
    [tokenizer.bos_token_id, tokenizer.eos_token_id],
    [reference.tokenizer.bos_token_id, reference.tokenizer.eos_token_id],
]

until = {"until": ["\n\n"], "max_gen_toks": 24}
texts = instances("generate_until", [(f"The capital of {country} is", until) for country in ("Japan", "Egypt")])
seen["text_generations"] = token_ids.generate_until(texts, disable_tqdm=True)

chat = LocalChatCompletion(model=model, base_url=f"{base_url}/chat/completions", num_concurrent=4, seed=7)
question = JsonChatStr(json.dumps([{"role": "user", "content": "Write one sentence about rivers."}]))
sampled = {"until": ["\n\n"], "max_gen_toks": 24, "temperature": 1.0}
seen["chat_generations"] = chat.generate_until(
    instances("generate_until", [(question, sampled)] * 4), disable_tqdm=True
)

print(json.dumps(seen))
