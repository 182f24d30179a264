"""Generating calls: what is passed to the engine, how errors come back, what the answers look like."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from fakes import EOS, MAX_MODEL_LEN, MODEL, FakeEngine, InProcess, make_state, sse_chunks
from octavo.core.errors import OverloadError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


def server(engine: FakeEngine | None = None, **options: Any) -> InProcess:
    return InProcess(make_state(engine, **options))


def test_every_sampling_field_reaches_the_engine() -> None:
    engine = FakeEngine()
    fields: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "presence_penalty": 0.3, "frequency_penalty": -0.3, "repetition_penalty": 1.2,
        "seed": 7, "max_tokens": 9, "min_tokens": 2, "include_stop_str_in_output": True,
        "ignore_eos": True, "prompt_logprobs": 1, "logprobs": 2, "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }  # fmt: skip
    lists = {
        "stop": ["zz", "yy"], "stop_token_ids": [3], "bad_words": ["q"],
        "allowed_token_ids": [1, 2],
    }  # fmt: skip
    body = {"prompt": "ab", **fields, **lists, "logit_bias": {"5": -1}}
    assert server(engine).post(COMPLETIONS, body).status_code == 200
    first, second = engine.submitted
    for name, value in fields.items():
        assert getattr(first.params, name) == value, name
    for name, value in lists.items():
        assert getattr(first.params, name) == tuple(value), name
    assert first.params.logit_bias == {5: -1.0}
    assert (first.seed, first.max_tokens, first.eos_token_ids) == (7, 9, ())
    assert (first.index, second.index) == (0, 1)
    assert first.bad_words_ids == ((ord("q"),),)


def test_defaults() -> None:
    engine = FakeEngine()
    calls = server(engine)
    calls.post(COMPLETIONS, {"prompt": "ab"})
    calls.post(COMPLETIONS, {"prompt": "ab", "max_tokens": None, "temperature": None})
    calls.post(CHATS, CHAT)
    calls.post(CHATS, {**CHAT, "max_tokens": 5, "max_completion_tokens": 3})
    text, nulls, chat, limited = engine.submitted
    assert text.max_tokens == nulls.max_tokens == 16
    assert text.params.temperature == nulls.params.temperature == 1.0
    assert chat.max_tokens == MAX_MODEL_LEN - chat.num_prompt
    assert limited.max_tokens == 3


def test_generation_config_gives_defaults_unless_told_otherwise() -> None:
    engine = FakeEngine()
    sampling = {"temperature": 0.25, "top_k": 3, "max_new_tokens": 11}
    calls = server(engine, default_sampling=sampling)
    calls.post(CHATS, CHAT)
    calls.post(CHATS, {**CHAT, "temperature": 0.75, "max_tokens": 2})
    server(engine, default_sampling=sampling, generation_config="octavo").post(CHATS, CHAT)
    auto, asked, neutral = engine.submitted
    assert (auto.params.temperature, auto.params.top_k, auto.max_tokens) == (0.25, 3, 11)
    assert (asked.params.temperature, asked.params.top_k, asked.max_tokens) == (0.75, 3, 2)
    assert (neutral.params.temperature, neutral.params.top_k) == (1.0, 0)
    assert neutral.max_tokens > 11


def test_chat_template_and_its_arguments() -> None:
    engine = FakeEngine()
    calls = server(engine)
    half = [*CHAT["messages"], {"role": "assistant", "content": "Well"}]
    calls.post(CHATS, {**CHAT, "chat_template_kwargs": {"shout": True}})
    calls.post(CHATS, {**CHAT, "add_generation_prompt": False})
    calls.post(CHATS, {"messages": half, "continue_final_message": True})
    decode = calls.state.frontend.tokenizer.decode
    texts = [decode(request.token_ids, False) for request in engine.submitted]
    assert texts == [
        "<|user|>hi\n<|assistant|>!",
        "<|user|>hi\n",
        "<|user|>hi\n<|assistant|>Well",
    ]
    bare = server(template=None).post(CHATS, CHAT)
    assert (bare.status_code, bare.json()["error"]["code"]) == (400, "no_chat_template")


def test_priority_needs_the_policy() -> None:
    engine = FakeEngine()
    state = make_state(engine)
    for policy in ("priority", "fair"):
        state.scheduling_policy = policy
        InProcess(state).post(COMPLETIONS, {"prompt": "a", "priority": -3})
        assert engine.submitted[-1].priority == -3
    state.scheduling_policy = "fcfs"
    refused = InProcess(state).post(COMPLETIONS, {"prompt": "a", "priority": -3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
    assert server(engine).post(COMPLETIONS, {"prompt": "a", "priority": 0}).status_code == 200


def test_batches_of_prompts() -> None:
    engine = FakeEngine()
    body = {"prompt": ["aa", "b"], "n": 2, "max_tokens": 3, "return_token_ids": True}
    answer = server(engine).post(COMPLETIONS, body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [
        [97, 97], [97, 97], [98], [98],
    ]  # fmt: skip
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert len({request.id for request in engine.submitted}) == 4


def test_shapes() -> None:
    engine = FakeEngine()
    engine.eos_after = 3
    calls = server(engine)
    body = {"prompt": "T", "seed": 0, "logprobs": 2, "max_tokens": 9}
    text = calls.post(COMPLETIONS, body).json()
    assert text["id"].startswith("cmpl-") and text["object"] == "text_completion"
    assert text["model"] == MODEL
    choice = text["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == 4 and logprobs["tokens"][-1] == "<eos>"
    assert all(len(tops) == 3 for tops in logprobs["top_logprobs"][:3])
    assert logprobs["tokens"][0].startswith("bytes:\\x"), "SCRIPT goes on inside a character here"
    chat = calls.post(CHATS, {**CHAT, "logprobs": True, "top_logprobs": 2}).json()
    assert chat["id"].startswith("chatcmpl-") and chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["role"] == "assistant"
    token = chat["choices"][0]["logprobs"]["content"][0]
    assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
    assert [top["logprob"] for top in token["top_logprobs"]] == [-0.5, -1.0]
    assert bytes(token["bytes"]).decode(errors="replace") == token["token"]


def test_prompt_logprobs() -> None:
    answer = server().post(COMPLETIONS, {"prompt": "abc", "prompt_logprobs": 1, "max_tokens": 1})
    rows = answer.json()["choices"][0]["prompt_logprobs"]
    assert rows[0] is None and len(rows) == 3
    assert rows[1]["98"] == {"logprob": -1.5, "rank": 3, "decoded_token": "b"}
    assert rows[1]["99"]["rank"] == 1


def test_stream_shape() -> None:
    body = {**CHAT, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    answer = server().post(CHATS, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *rest, last = sse_chunks(answer.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in (first, *rest, last))
    assert all(chunk["usage"] is None for chunk in (first, *rest))
    assert rest[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    plain = sse_chunks(server().post(CHATS, {**CHAT, "stream": True, "max_tokens": 3}).text)
    assert all("usage" not in chunk for chunk in plain)


@pytest.mark.parametrize("stream", [False, True])
def test_overload_is_429_with_retry_after(stream: bool) -> None:
    engine = FakeEngine()
    engine.refuse = OverloadError("4096 requests wait.", retry_after_s=2.5)
    calls = server(engine)
    answer = calls.post(COMPLETIONS, {"prompt": "a", "n": 2, "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    metrics = calls.state.metrics
    rejected = metrics.value("vllm:admission_rejections_total", [("reason", "queued_reqs")])
    assert (rejected, calls.state.num_in_flight) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_token_is_a_plain_error(stream: bool) -> None:
    engine = FakeEngine()
    engine.fail_after = 0
    answer = server(engine).post(COMPLETIONS, {"prompt": "a", "stream": stream})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "failed on purpose."


def test_failure_in_the_middle_of_a_stream_is_told_and_counted() -> None:
    engine = FakeEngine()
    engine.fail_after = 2
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    chunks = sse_chunks(server(engine).post(COMPLETIONS, body).text)
    assert chunks[-2]["error"]["type"] == "server_error"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_one_failing_choice_cancels_its_siblings() -> None:
    engine = FakeEngine()
    engine.fail_after = 1
    calls = server(engine)
    assert calls.post(COMPLETIONS, {"prompt": ["a", "b"], "n": 2}).status_code == 500
    assert engine.stats.num_running == 0


def test_a_bug_is_a_500_that_hides_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.refuse = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = server(engine).post(COMPLETIONS, {"prompt": "a"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert any(request_id in record.getMessage() for record in caplog.records)


def test_tokenize_and_back() -> None:
    calls = server()
    body = {"prompt": "hé", "return_token_strs": True}
    answer = calls.post("/tokenize", body).json()
    assert answer["tokens"] == [104, 195, 169]
    assert (answer["count"], answer["max_model_len"]) == (3, MAX_MODEL_LEN)
    assert len(answer["token_strs"]) == 3
    assert calls.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "hé"}
    assert calls.post("/detokenize", {"tokens": [EOS]}).json() == {"prompt": "<eos>"}
    assert calls.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    chat = calls.post("/tokenize", CHAT).json()
    assert bytes(chat["tokens"]).decode() == "<|user|>hi\n<|assistant|>"


def test_long_text_is_tokenized_off_the_loop() -> None:
    long = "a" * 9000
    answer = server().post("/tokenize", {"prompt": long}).json()
    assert answer["count"] == 9000
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": long}]}]}
    assert server().post("/tokenize", chat).json()["count"] > 9000


def test_models() -> None:
    calls = server()
    listed = calls.call("GET", "/v1/models").json()
    assert [row["id"] for row in listed["data"]] == [MODEL, "alias/model"]
    assert listed["data"][0]["max_model_len"] == MAX_MODEL_LEN
    assert calls.call("GET", "/v1/models/alias/model").json()["root"] == MODEL
    assert calls.call("GET", "/v1/models/other").status_code == 404


def test_concurrent_calls_do_not_mix() -> None:
    engine = FakeEngine(chunks=(1, 3))
    calls = server(engine)

    async def all_at_once() -> list[httpx.Response]:
        bodies = [{"prompt": chr(97 + i), "max_tokens": 20, "seed": i} for i in range(20)]
        return await asyncio.gather(
            *[calls.acall("POST", COMPLETIONS, json=body) for body in bodies]
        )

    together = [answer.json()["choices"][0]["text"] for answer in asyncio.run(all_at_once())]
    alone = [
        calls.post(COMPLETIONS, {"prompt": chr(97 + i), "max_tokens": 20, "seed": i}).json()
        for i in range(20)
    ]
    assert together == [answer["choices"][0]["text"] for answer in alone]


def test_request_log_holds_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="octavo"):
        server(enable_log_requests=True).post(COMPLETIONS, {"prompt": "my secret"})
    lines = [record.getMessage() for record in caplog.records if "prompt tokens" in record.msg]
    assert len(lines) == 1 and "9 prompt tokens, 16 output tokens, length" in lines[0]
    assert "secret" not in caplog.text
