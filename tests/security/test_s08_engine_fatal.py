"""S8, requests that have killed engines: after each a golden request gives identical bytes from the same processes."""

from __future__ import annotations

import struct
from typing import Any

from security.conftest import Live
from security.test_s16_exposure import tree

GOLDEN = {"prompt": "class Stack:", "max_tokens": 24, "temperature": 0, "logprobs": 2}
BIG = 2**31
FATAL: list[dict[str, Any]] = [
    {"prompt": [-1]},
    {"prompt": [BIG]},
    {"prompt": [10**18]},
    {"prompt": []},
    {"prompt": "", "max_tokens": 1},
    {"prompt": [[0], []]},
    {"prompt": "a", "stop_token_ids": [-1]},
    {"prompt": "a", "stop_token_ids": [BIG - 1]},
    {"prompt": "a", "allowed_token_ids": []},
    {"prompt": "a", "allowed_token_ids": [10**9]},
    {"prompt": "a", "logit_bias": {"-1": 1}},
    {"prompt": "a", "logit_bias": {"999999999": 100}},
    {"prompt": "a", "logit_bias": {"0": float(10**30)}},
    {"prompt": "a", "bad_words": ["\x00", ""]},
    {"prompt": "a", "bad_words": ["a" * 9999]},
    {"prompt": "a", "min_tokens": 10, "max_tokens": 5},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a", "max_tokens": 10**12},
    {"prompt": "a", "truncate_prompt_tokens": 0},
    {"prompt": "a", "truncate_prompt_tokens": -5},
    {"prompt": "a", "prompt_logprobs": -1},
    {"prompt": "a", "prompt_logprobs": 10**6},
    {"prompt": "a", "logprobs": 10**6},
    {"prompt": "a", "n": 10**6},
    {"prompt": "a", "n": 2, "best_of": 1},
    {"prompt": "a", "temperature": 5e-324, "max_tokens": 3},
    {"prompt": "a", "temperature": 65536, "top_p": 5e-324, "max_tokens": 3},
    {"prompt": "a", "min_p": 1, "top_k": 1, "max_tokens": 3},
    {"prompt": "a", "repetition_penalty": 1e-9, "max_tokens": 3},
    {"prompt": "a", "presence_penalty": 2, "frequency_penalty": -2, "max_tokens": 3},
    {"prompt": "a", "seed": 2**63 - 1, "temperature": 1, "max_tokens": 3},
    {"prompt": "a", "seed": -(2**63), "temperature": 1, "max_tokens": 3},
    {"prompt": "\x00\uffff\u202e" * 50, "max_tokens": 3},
    {"prompt": "\ud83d", "max_tokens": 3},
    {"prompt": "a", "use_beam_search": True, "n": 4, "max_tokens": 3},
    {"prompt": "a", "use_beam_search": True, "n": 10**5},
    {"prompt": "a", "structured_outputs": {"regex": ""}, "max_tokens": 3},
    {"prompt": "a", "structured_outputs": {"regex": "[^\\s\\S]"}, "max_tokens": 3},
    {"prompt": "a", "structured_outputs": {"choice": []}},
    {"prompt": "a", "structured_outputs": {"choice": [""]}, "max_tokens": 3},
    {"prompt": "a", "structured_outputs": {"json": "not json"}},
    {"prompt": "a", "structured_outputs": {"json": {"type": "object", "$ref": "#"}}},
    {"prompt": "a", "cache_salt": "\x00" * 256, "max_tokens": 3},
    {"prompt": "a", "suffix": "b", "max_tokens": 3},
    {"prompt": "a", "stop": ["\x00", "\ufffd"], "max_tokens": 3},
    {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 3},
    {"prompt": "a", "prompt_embeds": "AAAA"},
    {"prompt": "a", "kv_transfer_params": {"x": 1}},
    {"prompt": "a", "vllm_xargs": {"x": struct.pack("<d", 1.0).hex()}},
]


def test_the_golden_request_stands_after_each(live: Live) -> None:
    def choice(client: Any) -> Any:
        answer = client.post("/v1/completions", json=GOLDEN)
        assert answer.status_code == 200
        return answer.json()["choices"]

    with live.client() as client:
        golden, pids = choice(client), tree(live.process.pid)
        for body in FATAL:
            raw = str(body).encode("utf-8", "backslashreplace")[:200]
            try:
                answer = client.post("/v1/completions", json=body)
            except UnicodeEncodeError:
                lone = b'{"prompt": "\\ud83d", "max_tokens": 3}'
                headers = {"content-type": "application/json"}
                answer = client.post("/v1/completions", content=lone, headers=headers)
            assert answer.status_code in (200, 400), (raw, answer.text)
            assert choice(client) == golden, raw
        assert tree(live.process.pid) >= pids, "nobody was replaced"
        assert client.get("/readyz").status_code == 200
