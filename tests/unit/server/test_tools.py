"""Chat with tools and reasoning: what the model is shown, how it is bound, what comes back, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes import InProcess, sse_chunks
from octavo.core.structured import StructuredOutputs
from talks import CALL, NOW, TOOLS, USER, prompt_of, talking

PATH = "/v1/chat/completions"
ASK: dict[str, Any] = {"messages": [USER], "tools": TOOLS}


def ask(text: str, body: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    _, state = talking(text, **options)
    answer = InProcess(state).post(PATH, {**ASK, **(body or {})})
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    assert whole["choices"][0] == streamed(text, body, **options)
    return whole


def streamed(text: str, body: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    """The same from a stream, folded as a client would."""
    _, state = talking(text, chunks=(1, 5), **options)
    answer = InProcess(state).post(PATH, {**ASK, **(body or {}), "stream": True})
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None}
    for chunk in sse_chunks(answer.text):
        (part,) = chunk["choices"]
        delta = part.pop("delta")
        for name in ("content", "reasoning", "reasoning_content", "tool_parse_error"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                calls.append(
                    {"id": call["id"], "type": call["type"], "function": {"arguments": ""}}
                )
                calls[-1]["function"]["name"] = call["function"]["name"]
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        choice |= {k: v for k, v in part.items() if k in ("finish_reason", "stop_reason")}
    if not message["content"] and ("tool_calls" in message or "reasoning" in message):
        message["content"] = None
    return Same(choice)


class Same(dict[str, Any]):
    """Equal but for the ids of calls, which are drawn."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, dict)
        return without_ids(self) == without_ids(other)

    __hash__ = None  # type: ignore[assignment]  # a dict


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(choice))
    for call in copy["message"].get("tool_calls", []):
        assert call.pop("id").startswith(("call_", ""))
    return copy


def test_calls() -> None:
    answer = ask(f"<think>\nhm\n</think>\n\nI look.\n{CALL}\n{NOW}")
    (choice,) = answer["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "I look." and message["reasoning_content"] == "hm"
    assert message["reasoning"] == "hm" and "tool_parse_error" not in message
    first, second = message["tool_calls"]
    assert first["type"] == "function" and first["id"] != second["id"]
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert second["function"] == {"name": "now", "arguments": "{}"}
    # One token per byte: those between the tags.
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("\nhm\n")}


def test_calls_alone_have_no_content() -> None:
    (choice,) = ask(NOW)["choices"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_a_plain_answer() -> None:
    (choice,) = ask("Sunny. \n")["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Sunny. \n"}
    assert choice["finish_reason"] == "stop"


def test_a_call_cut_off_is_flagged() -> None:
    (choice,) = ask(CALL, {"max_tokens": 60})["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "O'
    assert choice["message"]["tool_parse_error"]


def test_what_does_not_parse_is_content_flagged_and_counted() -> None:
    text = "A <tool_call>{]</tool_call>"
    _, state = talking(text)
    server = InProcess(state)
    message = server.post(PATH, ASK).json()["choices"][0]["message"]
    assert message["content"] == text and "tool_calls" not in message
    assert "expected" in message["tool_parse_error"]
    metrics = server.call("GET", "/metrics").text
    assert "octavo:tool_parse_errors_total{" in metrics
    line = next(x for x in metrics.splitlines() if x.startswith("octavo:tool_parse_errors_total{"))
    assert line.endswith(" 1.0")


def test_without_tools_calls_are_text() -> None:
    (choice,) = ask(CALL, {"tools": []})["choices"]
    assert choice["message"]["content"] == CALL
    (choice,) = ask(CALL, {"tool_choice": "none"})["choices"]
    assert choice["message"]["content"] == CALL


def test_reasoning_may_be_left_out_and_is_counted() -> None:
    answer = ask("<think>hm</think>Yes.", {"include_reasoning": False})
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Yes."}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize(("enabled", "reasoning"), [(True, "hm"), (False, None)])
def test_the_prompt_tells_whether_the_reasoning_is_open(
    enabled: bool, reasoning: str | None
) -> None:
    body = {"chat_template_kwargs": {"enable_thinking": enabled}}
    text = "hm\n</think>\n\nYes." if enabled else "Yes."
    message = ask(text, body)["choices"][0]["message"]
    assert message.get("reasoning") == reasoning and message["content"] == "Yes."


@pytest.mark.parametrize(
    ("begun", "said", "reasoning", "content"),
    [
        ("<think>I th", "ink.</think>Yes.", "ink.", "Yes."),
        ("<think>a</think>Y", "es.", None, "es."),
        ("So ", "it is.", None, "it is."),
    ],
)
def test_a_message_that_is_continued_tells_it_too(
    begun: str, said: str, reasoning: str | None, content: str
) -> None:
    messages = [USER, {"role": "assistant", "content": begun}]
    message = ask(said, {"messages": messages, "continue_final_message": True})["choices"][0]
    assert message["message"].get("reasoning") == reasoning
    assert message["message"]["content"] == content


def test_a_thinking_budget_is_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, state = talking("ok")
    ids = {"<think>": 7, "</think>": 8}
    monkeypatch.setattr(state.frontend.tokenizer, "token_id", ids.get)
    server = InProcess(state)

    def grammar(body: dict[str, Any]) -> str | None:
        answer = server.post(PATH, {**ASK, "thinking_token_budget": 5, **body})
        assert answer.status_code == 200, answer.text
        shape = engine.submitted[-1].params.structured_outputs
        return shape.grammar if shape else None

    free = grammar({})
    assert free is not None and "<[^8]>{0,5} <[8]>" in free and "<[7]>" in free
    forced = grammar({"tool_choice": "required"})
    assert forced is not None and "<[^8]>{0,5} <[8]>" in forced and "get_weather" in forced
    shaped = grammar({"response_format": {"type": "json_object"}})
    assert shaped is not None and "<[^8]>{0,5} <[8]>" in shaped and "%json" in shaped
    assert grammar({"chat_template_kwargs": {"enable_thinking": False}}) is None
    own = {"structured_outputs": {"grammar": 'start: "a"'}}
    answer = server.post(PATH, {**ASK, "thinking_token_budget": 5, **own})
    assert answer.json()["error"]["param"] == "thinking_token_budget"


def test_effort_none_turns_thinking_off_where_the_template_can() -> None:
    engine, state = talking("Yes.")
    assert InProcess(state).post(PATH, {**ASK, "reasoning_effort": "none"}).status_code == 200
    assert prompt_of(engine).endswith("</think>\n\n")
    error = InProcess(state).post(PATH, {**ASK, "reasoning_effort": "high"}).json()["error"]
    assert error["param"] == "reasoning_effort"


def test_the_template_shows_tools_calls_and_results() -> None:
    engine, state = talking("ok")
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": False}}]
    history = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "now", "arguments": '{"a": [1]}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    answer = InProcess(state).post(PATH, {"messages": history, "tools": strict})
    assert answer.status_code == 200, answer.text
    prompt = prompt_of(engine)
    assert prompt.startswith(json.dumps([TOOLS[0]]))
    assert '(thought hm)(call call_1 now {"a": [1]})' in prompt
    assert "<tool>12:00(to call_1)" in prompt
    InProcess(state).post(PATH, {**ASK, "tool_choice": "none"})
    assert prompt_of(engine).startswith("<user>")


def bound(body: dict[str, Any], **options: Any) -> StructuredOutputs | None:
    """What the engine is told the output must be."""
    engine, state = talking(NOW, **options)
    answer = InProcess(state).post(PATH, {**ASK, **body})
    assert answer.status_code == 200, answer.text
    return engine.submitted[-1].params.structured_outputs


def test_required_and_named_calls_are_bound_by_a_grammar() -> None:
    assert bound({}) is None
    required = bound({"tool_choice": "required"})
    assert required is not None and required.grammar is not None
    assert "get_weather" in required.grammar and "now" in required.grammar
    assert "call){0,15}" in required.grammar
    choice = {"type": "function", "function": {"name": "now"}}
    named = bound({"tool_choice": choice})
    assert named is not None and named.grammar is not None
    assert "get_weather" not in named.grammar and "now" in named.grammar
    single = bound({"tool_choice": "required", "parallel_tool_calls": False})
    assert single is not None and single.grammar is not None and "call){" not in single.grammar


def test_a_forced_call_follows_the_reasoning() -> None:
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    opened = bound({"tool_choice": "required", **thinking})
    assert opened is not None and opened.grammar is not None
    assert "start: (thought_0)" in opened.grammar
    thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    closed = bound({"tool_choice": "required", **thinking})
    assert closed is not None and closed.grammar is not None and "thought" not in closed.grammar


def test_strict_and_single_calls_are_bound_while_the_model_is_free() -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    made = bound({"tools": strict})
    assert made is not None and made.grammar is not None and "lead[lazy]" in made.grammar
    single = bound({"parallel_tool_calls": False})
    assert single is not None and single.grammar is not None
    assert '"city"' not in single.grammar  # not strict: any arguments


def test_forced_calls_need_no_parser() -> None:
    forced = bound({"tool_choice": "required"}, tools=None)
    assert forced is not None
    _, state = talking('[{"name": "now", "arguments": {}}]', tools=None)
    answer = InProcess(state).post(PATH, {**ASK, "tool_choice": "required"})
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}


FUNCTION = TOOLS[0]["function"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": 1}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "x": 1}}]}, "tools[0].function"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": TOOLS * 200}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nwo"}}}, "tool_choice.function.name"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": None, "tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"include_reasoning": 1}, "include_reasoning"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        # The markers are no single tokens of this tokenizer.
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ],
)  # fmt: skip
def test_bad_tools(body: dict[str, Any], param: str) -> None:
    engine, state = talking("x")
    answer = InProcess(state).post(PATH, {**ASK, **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert not engine.submitted


def test_deep_tools_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"properties": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    _, state = talking("x")
    answer = InProcess(state).post(PATH, {**ASK, "tools": [tool]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tools": None}, "auto_tool_choice_disabled"),
        ({"enable_auto_tool_choice": False}, "auto_tool_choice_disabled"),
        ({"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}, "tools_not_supported"),
    ],
)
def test_tools_that_could_not_work_are_refused(options: dict[str, Any], code: str) -> None:
    _, state = talking("x", **options)
    answer = InProcess(state).post(PATH, ASK)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code


def test_n_choices_are_parsed_apart() -> None:
    _, state = talking(f"<think>a</think>{NOW}", chunks=(2, 7))
    answer = InProcess(state).post(PATH, {**ASK, "n": 3}).json()
    assert len(answer["choices"]) == 3
    for choice in answer["choices"]:
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_tokenize_shows_tools() -> None:
    _, state = talking()
    with_tools = InProcess(state).post("/tokenize", {"messages": [USER], "tools": TOOLS}).json()
    assert (
        with_tools["count"]
        > InProcess(state).post("/tokenize", {"messages": [USER]}).json()["count"]
    )


def test_logprobs_and_ids_cover_every_token() -> None:
    body = {"logprobs": True, "return_token_ids": True}
    (choice,) = ask_raw(f"<think>a</think>b{NOW}", body)["choices"]
    size = len(f"<think>a</think>b{NOW}") + 1
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == size


def ask_raw(text: str, body: dict[str, Any]) -> dict[str, Any]:
    _, state = talking(text)
    answer: dict[str, Any] = InProcess(state).post(PATH, {**ASK, **body}).json()
    return answer
