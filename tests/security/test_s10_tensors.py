"""S10, tensors from users: none is taken, in any field, shape or encoding."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from fakes import FakeEngine, InProcess, make_state

ENGINE = FakeEngine()
SERVER = InProcess(make_state(ENGINE))
DENSE = base64.b64encode(struct.pack("<4f", 1.0, float("nan"), float("inf"), -1.0)).decode()
TORCH = base64.b64encode(b"PK\x03\x04" + b"archive/data.pkl" * 10).decode()
FIELDS = (
    "prompt_embeds", "prompt_embeddings", "inputs_embeds", "input_embeds", "image_embeds", "mm_embeds",
    "multi_modal_data", "mm_processor_kwargs", "kv_transfer_params", "position_ids", "attention_mask",
    "token_type_ids", "custom_logit_processor", "logits_processors", "lora_tensors",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("lenient", [False, True])
def test_no_field_takes_a_tensor(field: str, lenient: bool) -> None:
    engine = FakeEngine()
    server = InProcess(make_state(engine, lenient=lenient))
    user = [{"role": "user", "content": "a"}]
    tensors: list[Any] = [
        DENSE,
        TORCH,
        [[1.0, 2.0]],
        {"shape": [10**9, 10**9], "data": DENSE},
        [DENSE],
    ]
    for path, body in (
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": user, "max_tokens": 1}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
    ):
        for tensor in tensors:
            answer = server.post(path, {**body, field: tensor})
            if not lenient or path == "/v1/embeddings":
                assert answer.status_code == 400, (path, field)
                if path != "/v1/embeddings":
                    assert field in answer.json()["error"]["message"]
            elif answer.status_code == 200:
                assert any(one["param"] == field for one in answer.json()["warnings"])
    assert len({request.token_ids for request in engine.submitted}) <= 2, (
        "the prompts' own tokens alone"
    )


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt_embeds": DENSE},
        [{"prompt_embeds": DENSE}],
        [1.5, 2.5],
        [[1.0]],
        {"data": DENSE, "shape": [4]},
        [[float(10**30)]],
        [[[1]]],
    ],
)
def test_a_prompt_is_text_or_token_ids(prompt: Any) -> None:
    answer = SERVER.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("prompt")
    assert not ENGINE.submitted
