"""Fields of completions and chat completions beyond plain sampling: each changes what it says it changes."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from fakes import MAX_MODEL_LEN, FakeEngine, InProcess, byte_tokenizer, make_state, sse_chunks
from octavo.engine.frontend import Frontend
from octavo.server.auth import KeyRing
from octavo.text.tokenizer import Tokenizer, TokenizerFacts

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


def server(engine: FakeEngine | None = None, **options: Any) -> InProcess:
    return InProcess(make_state(engine, **options))


def ok(calls: InProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = calls.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("prompt", ["ab✓", [97, 98, 226, 156, 147]])
def test_echo_puts_the_prompt_first(prompt: Any) -> None:
    body = {"prompt": prompt, "max_tokens": 4, "logprobs": 1, "seed": 1}
    plain = ok(server(), COMPLETIONS, body)["choices"][0]
    echoed = ok(server(), COMPLETIONS, {**body, "echo": True})["choices"][0]
    assert echoed["text"] == "ab✓" + plain["text"]
    shown, own = echoed["logprobs"], plain["logprobs"]
    assert shown["tokens"][:2] == ["a", "b"] and shown["tokens"][5:] == own["tokens"]
    assert shown["token_logprobs"] == [None, -1.5, -1.5, -1.5, -1.5, *own["token_logprobs"]]
    assert shown["top_logprobs"][0] is None
    assert len(shown["top_logprobs"][1]) == 2, "one likeliest token and the one at hand"
    assert shown["text_offset"] == [0, 1, 2, 2, 2] + [at + 3 for at in own["text_offset"]]
    assert "prompt_logprobs" not in echoed


def test_echo_of_a_batch_streamed_with_ids_and_prompt_logprobs() -> None:
    body = {"prompt": ["aa", "b"], "n": 2, "echo": True, "max_tokens": 3, "logprobs": 2,
            "prompt_logprobs": 1, "return_token_ids": True}  # fmt: skip
    whole = ok(server(FakeEngine(chunks=(2,))), COMPLETIONS, body)["choices"]
    assert [choice["text"][:2] for choice in whole[:2]] == ["aa", "aa"]
    assert all(choice["text"].startswith("b") for choice in whole[2:])
    rows = whole[0]["prompt_logprobs"]
    assert len(rows[1]) == 2 and len(whole[0]["logprobs"]["top_logprobs"][1]) == 3
    assert whole[2]["prompt_token_ids"] == [98] and len(whole[2]["token_ids"]) == 3
    stream = server(FakeEngine(chunks=(2,))).post(COMPLETIONS, {**body, "stream": True})
    texts = {index: "" for index in range(4)}
    for chunk in sse_chunks(stream.text):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole]


def test_max_tokens_0_scores_a_prompt() -> None:
    """What evaluation harnesses ask: the logprobs of a text, and nothing new."""
    body = {"prompt": [97, 98, 99], "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = ok(server(), COMPLETIONS, body)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.5, -1.5]
    assert answer["usage"]["completion_tokens"] == 0
    bare = ok(server(), COMPLETIONS, {"prompt": "abc", "max_tokens": 0, "echo": True})
    assert (bare["choices"][0]["text"], bare["choices"][0]["logprobs"]) == ("abc", None)


def test_echo_of_a_chat_continues_the_assistants_message() -> None:
    half = [*CHAT["messages"], {"role": "assistant", "content": [{"type": "text", "text": "Well"}]}]
    body = {"messages": half, "continue_final_message": True, "max_tokens": 3}
    plain = ok(server(), CHATS, body)["choices"][0]["message"]["content"]
    echoed = ok(server(), CHATS, {**body, "echo": True})["choices"][0]["message"]["content"]
    assert echoed == "Well" + plain
    asked = ok(server(), CHATS, {**CHAT, "echo": True, "max_tokens": 3})
    assert not asked["choices"][0]["message"]["content"].startswith("hi"), "not the assistant's"


def fim_state(*tokens: str) -> Any:
    state = make_state(FakeEngine())
    backend = byte_tokenizer()._backend
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    state.frontend = Frontend(state.engine, Tokenizer(backend, TokenizerFacts()))
    return state


def test_suffix_asks_for_what_stands_between() -> None:
    engine = FakeEngine()
    state = fim_state("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    state.frontend.client = engine
    ids = [
        state.frontend.tokenizer.token_id(f"<|fim_{part}|>")
        for part in ("prefix", "suffix", "middle")
    ]
    # The engine's vocabulary ends before these ids: what reaches it is checked on the way.
    answer = InProcess(state).post(COMPLETIONS, {"prompt": "ab", "suffix": "cd"})
    assert answer.json()["error"]["param"] == "prompt" and str(ids[2]) in answer.text
    assert server().post(COMPLETIONS, {"prompt": "ab", "suffix": ""}).status_code == 200


def test_best_of_answers_with_the_likeliest() -> None:
    engine = FakeEngine()
    original = engine._event

    def event(request: Any, part: Any, sent: int, num_cached: int) -> Any:
        out = original(request, part, sent, num_cached)
        worth = (-3.0, -1.0, -2.0)[request.index]
        rows = tuple(type(row)(row.token_ids, (worth,), 1) for row in out.logprobs)
        return type(out)(id=out.id, token_ids=out.token_ids, logprobs=rows)

    engine._event = event  # type: ignore[method-assign]
    body = {"prompt": "a", "n": 2, "best_of": 3, "max_tokens": 4, "return_token_ids": True}
    answer = ok(server(engine), COMPLETIONS, body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    all_three = ok(server(), COMPLETIONS, {**body, "n": 3, "best_of": None})["choices"]
    assert [choice["token_ids"] for choice in answer["choices"]] == [
        all_three[1]["token_ids"],
        all_three[2]["token_ids"],
    ]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 12, "what was generated is counted"


@pytest.mark.parametrize(
    ("fields", "kept", "cut"),
    [
        ({"truncate_prompt_tokens": 3}, "cde", 2),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc", 2),
        ({"truncate_prompt_tokens": 9}, "abcde", 0),
        ({"truncate_prompt_tokens": -1}, "abcde", 0),
    ],
)
def test_truncation_only_when_asked_and_it_is_told(
    fields: dict[str, Any], kept: str, cut: int
) -> None:
    engine = FakeEngine()
    for prompt in ("abcde", list(b"abcde"), ["abcde"], [list(b"abcde")]):
        usage = ok(server(engine), COMPLETIONS, {"prompt": prompt, **fields})["usage"]
        assert bytes(engine.submitted[-1].token_ids).decode() == kept
        assert (usage["truncated_tokens"], usage["prompt_tokens"]) == (cut, len(kept))
    assert "truncated_tokens" not in ok(server(), COMPLETIONS, {"prompt": "a"})["usage"]


def test_truncation_makes_a_long_prompt_fit() -> None:
    engine = FakeEngine()
    long: Any
    for long in ("ab" * MAX_MODEL_LEN, [97] * (2 * MAX_MODEL_LEN)):
        body = {"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 8}
        usage = ok(server(engine), COMPLETIONS, body)["usage"]
        assert usage["prompt_tokens"] == MAX_MODEL_LEN - 8
        assert usage["truncated_tokens"] == MAX_MODEL_LEN + 8
    chat = {**CHAT, "truncate_prompt_tokens": 4, "max_tokens": 2}
    assert ok(server(engine), CHATS, chat)["usage"]["prompt_tokens"] == 4


def test_a_cache_salt_narrows_and_never_reaches_another_key() -> None:
    scopes: dict[tuple[str, str | None], str] = {}
    for key in ("one", "two", ""):
        keys = ("one", "two") if key else ()
        for salt in (None, "s", "t", KeyRing(("one",)).admit(["Bearer one"]).caller.cache_scope):
            engine = FakeEngine()
            headers = {"authorization": f"Bearer {key}"} if key else {}
            body = {"prompt": "a", "cache_salt": salt}
            calls = server(engine, keys=keys)
            assert calls.call("POST", COMPLETIONS, json=body, headers=headers).status_code == 200
            scopes[key, salt] = engine.submitted[0].cache_scope
    assert len(set(scopes.values())) == len(scopes), (
        "every key with every salt is a scope of its own"
    )


def test_request_id_names_the_answer_and_nothing_inside() -> None:
    engine = FakeEngine()
    calls = server(engine)
    one = ok(calls, COMPLETIONS, {"prompt": "a", "request_id": "mine.1"})
    chat = ok(calls, CHATS, {**CHAT, "request_id": "mine.1", "max_tokens": 1})
    assert (one["id"], chat["id"]) == ("cmpl-mine.1", "chatcmpl-mine.1")
    assert all("mine" not in request.id for request in engine.submitted)


def test_tokens_as_ids_in_logprobs() -> None:
    body = {"prompt": "T", "logprobs": 2, "max_tokens": 2, "return_token_ids": True}
    choice = ok(server(), COMPLETIONS, {**body, "return_tokens_as_token_ids": True})["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{one}" for one in choice["token_ids"]]
    assert all(name.startswith("token_id:") for name in choice["logprobs"]["top_logprobs"][0])
    chat = {**CHAT, "logprobs": True, "top_logprobs": 1, "max_tokens": 1}
    content = ok(server(), CHATS, {**chat, "return_tokens_as_token_ids": True})["choices"][0]
    token = content["logprobs"]["content"][0]
    assert token["token"].startswith("token_id:")
    assert token["top_logprobs"][0]["token"].startswith("token_id:")


def test_documents_reach_a_template_that_reads_them() -> None:
    engine = FakeEngine()
    template = "{% for d in documents %}[{{ d.text }}]{% endfor %}{{ messages[0].content }}"
    body = {**CHAT, "documents": [{"text": "one"}, {"text": "two"}], "max_tokens": 1}
    ok(server(engine, template=template), CHATS, body)
    assert bytes(engine.submitted[0].token_ids) == b"[one][two]hi"
    refused = server().post(CHATS, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents")


@pytest.mark.parametrize("stream", [False, True])
def test_beams_are_the_choices(stream: bool) -> None:
    engine = FakeEngine()
    body = {"prompt": "a", "use_beam_search": True, "n": 3, "max_tokens": 4, "logprobs": 1,
            "stream": stream, "temperature": 0, "return_token_ids": True}  # fmt: skip
    answer = server(engine).post(COMPLETIONS, body)
    assert answer.status_code == 200, answer.text
    choices = (
        [c for chunk in sse_chunks(answer.text) for c in chunk["choices"] if c["token_ids"]]
        if stream
        else answer.json()["choices"]
    )
    ids = [tuple(choice["token_ids"]) for choice in choices]
    assert len(set(ids)) == 3 and all(len(one) == 4 for one in ids)
    totals = [sum(choice["logprobs"]["token_logprobs"]) for choice in choices]
    assert totals == sorted(totals, reverse=True)
    assert all(len(choice["logprobs"]["top_logprobs"][0]) <= 2 for choice in choices)
    assert len(engine.submitted) == 1 + 3 * 3, "one request per beam and step"
    if not stream:
        usage = answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (1, 12)


def test_special_tokens_are_added_unless_told_otherwise() -> None:
    engine = FakeEngine()
    calls = server(engine)
    backend = byte_tokenizer()._backend
    facts = TokenizerFacts(specials={"bos_token": "<user>", "eos_token": "<eos>"}, add_bos=True)
    calls.state.frontend = Frontend(engine, Tokenizer(backend, facts))
    for value in (None, True, False):
        ok(calls, COMPLETIONS, {"prompt": "a", "add_special_tokens": value})
        ok(calls, CHATS, {**CHAT, "add_special_tokens": value, "max_tokens": 1})
        ok(calls, "/tokenize", {"prompt": "a", "add_special_tokens": value})
    begins = [request.token_ids[0] == 257 for request in engine.submitted]
    assert begins == [True, False, True, True, False, False], "a template writes its own"
    texts = {
        value: ok(calls, "/tokenize", {"prompt": "a", "add_special_tokens": value})["count"]
        for value in (True, False)
    }
    assert texts == {True: 2, False: 1}


def test_tokenizer_info() -> None:
    assert server().call("GET", "/tokenizer_info").json() == {
        "bos_token": None,
        "eos_token": "<eos>",
        "pad_token": None,
        "eos_token_ids": [256],
        "vocab_size": 260,
        "model_max_length": MAX_MODEL_LEN,
    }


def test_lenient_names_what_it_ignores() -> None:
    engine = FakeEngine()
    calls = server(engine, lenient=True)
    odd = {"temprature": 1, "prompt_embeds": "AAAA", "max_tokens": 2}
    answer = ok(calls, COMPLETIONS, {"prompt": "a", **odd})
    assert [(w["param"], w["code"]) for w in answer["warnings"]] == [
        ("temprature", "unknown_field"),
        ("prompt_embeds", "unsupported_field"),
    ]
    assert "Did you mean 'temperature'?" in answer["warnings"][0]["message"]
    messages = [{"role": "user", "content": "hi", "colour": "red", "audio": {"id": "x"}}]
    options = {"include_usage": True, "include_usag": True, "x": 1}
    body = {"messages": messages, "stream": True, "stream_options": options, "max_tokens": 2}
    chunks = sse_chunks(calls.post(CHATS, body).text)
    assert [w["param"] for w in chunks[0]["warnings"]] == [
        "stream_options.include_usag", "stream_options.x", "messages[0].colour", "messages[0].audio",
    ]  # fmt: skip
    assert all("warnings" not in chunk for chunk in chunks[1:])
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    extra = {"documents": [{"text": "x"}], "chat_template_kwargs": {"shout": True, "loud": 1}}
    told = ok(calls, CHATS, {**CHAT, **extra, "max_tokens": 1})["warnings"]
    assert [w["param"] for w in told] == ["chat_template_kwargs.loud", "documents"]
    assert bytes(engine.submitted[-1].token_ids).endswith(b"!"), "the known one still counts"
    tokens = ok(calls, "/tokenize", {"prompt": "a", "colour": 1})
    assert tokens["warnings"][0]["param"] == "colour" and tokens["tokens"] == [97]
    assert "warnings" not in ok(calls, COMPLETIONS, {"prompt": "a"})


def test_lenient_still_refuses_bad_values() -> None:
    calls = server(lenient=True)
    for body in ({"prompt": "a", "n": 0, "x": 1}, {"x": 1}, {"prompt": "a", "stream_options": 1}):
        answer = calls.post(COMPLETIONS, body)
        assert answer.status_code == 400 and "warnings" not in answer.json()


@pytest.mark.parametrize("name", ["a\nb", "a`b", "a` - at `$.x", "`", "x.y", "a[0]"])
def test_lenient_takes_or_refuses_a_field_that_is_named_like_a_complaint(name: str) -> None:
    options = {"include_usage": True, name: 1}
    body = {"prompt": "a", "stream": True, "stream_options": options, "max_tokens": 1}
    assert server(lenient=True).post(COMPLETIONS, body).status_code in (200, 400)


def test_arguments_of_a_call_that_are_nested_without_end_stay_text() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "b"},
    ]
    answer = server().post(CHATS, {"messages": messages, "max_tokens": 1})
    assert answer.status_code in (200, 400)
