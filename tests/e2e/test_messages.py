"""/v1/messages under Anthropic's official client: blocks, events, tools, thinking, errors in its own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from fakes import MODEL, FakeEngine, InProcess, ServerThread
from talks import CALL, NOW, WEATHER, prompt_of, talking

TOOL: Any = {"name": "get_weather", "description": "Weather.", "input_schema": WEATHER}
THINKS = f"<think>\nhm\n</think>\n\nI look.\n{CALL}"
USER: Any = {"role": "user", "content": "hi"}
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 500, "messages": [USER]}


class Served:
    """A server that says what a test sets, and its client."""

    def __init__(self, engine: FakeEngine, server: ServerThread) -> None:
        self.engine = engine
        self.client = anthropic.Anthropic(base_url=server.url, api_key="sk-one", max_retries=0)
        self.url = server.url

    def says(self, text: str) -> None:
        self.engine.script = list(text.encode())


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine, state = talking("", keys=("sk-one",), chunks=(4, 1))
    with ServerThread(state) as server:
        made = Served(engine, server)
        with made.client:
            yield made


@pytest.fixture(autouse=True)
def fresh(served: Served) -> None:
    served.engine.fail_after = None
    served.says("Hello.")


def test_a_text(served: Served) -> None:
    answer = served.client.messages.create(
        **ASK, system="Be kind.", metadata={"user_id": "u"}, extra_body={"temperature": 0.5}
    )
    assert answer.content[0].type == "text" and answer.content[0].text == "Hello."
    assert answer.stop_reason == "end_turn" and answer.role == "assistant"
    assert prompt_of(served.engine) == "<system>Be kind.<user>hi<assistant>"
    usage = answer.usage
    assert usage.output_tokens == len("Hello.") + 1 and usage.cache_read_input_tokens
    num_prompt = served.engine.submitted[-1].num_prompt
    assert usage.input_tokens + usage.cache_read_input_tokens == num_prompt
    assert served.engine.submitted[-1].params.temperature == 0.5


def test_blocks_and_their_events(served: Served) -> None:
    served.says(THINKS)
    whole = served.client.messages.create(**ASK, tools=[TOOL])
    thought, text, use = whole.content
    assert thought.type == "thinking" and thought.thinking == "hm"
    assert text.type == "text" and text.text == "I look."
    assert use.type == "tool_use" and use.input == {"city": "Oslo"} and use.id.startswith("toolu_")
    assert whole.stop_reason == "tool_use"
    with served.client.messages.stream(**ASK, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_message()
    assert bare(last.model_dump()) == bare(whole.model_dump())
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    raw = list(served.client.messages.create(**ASK, tools=[TOOL], stream=True))
    said = [event.type for event in raw if event.type != "content_block_delta"]
    blocks = ["content_block_start", "content_block_stop"] * 3
    assert [kind for kind in said if kind != "ping"] == [
        "message_start", *blocks, "message_delta", "message_stop"
    ]  # fmt: skip
    texts: dict[str, str] = {}
    for event in raw:
        if event.type == "content_block_delta":
            delta = event.delta.model_dump()
            kind = delta.pop("type")
            texts[kind] = texts.get(kind, "") + "".join(map(str, delta.values()))
    assert texts == {
        "thinking_delta": "hm",
        "signature_delta": "",
        "text_delta": "I look.",
        "input_json_delta": '{"city": "Oslo"}',
    }


def bare(answer: Any) -> Any:
    """Without drawn ids."""
    if isinstance(answer, dict):
        return {k: bare(v) for k, v in answer.items() if k != "id" and v is not None}
    return [bare(value) for value in answer] if isinstance(answer, list) else answer


def test_a_conversation_with_tools(served: Served) -> None:
    history: list[Any] = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]  # fmt: skip
    system: Any = [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}]
    served.client.messages.create(
        model=MODEL, max_tokens=9, messages=history, tools=[TOOL], system=system
    )
    prompt = prompt_of(served.engine)
    assert '<assistant>I look.(thought hm)(call toolu_1 get_weather {"city": "Oslo"})' in prompt
    assert "<tool>rain(to toolu_1)<user>And?" in prompt and "<system>S<" in prompt
    assert '"parameters": ' in prompt and "input_schema" not in prompt


def test_ends(served: Served) -> None:
    cut = served.client.messages.create(model=MODEL, max_tokens=3, messages=[USER])
    assert cut.stop_reason == "max_tokens"
    stopped = served.client.messages.create(**ASK, stop_sequences=["lo"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "lo")
    assert stopped.content[0].text == "Hel"  # type: ignore[union-attr]


def test_choices(served: Served) -> None:
    served.says(NOW)
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        served.client.messages.create(**ASK, tools=[TOOL], tool_choice=choice)  # type: ignore[call-overload]
        shape = served.engine.submitted[-1].params.structured_outputs
        assert shape is not None and shape.grammar is not None and "get_weather" in shape.grammar
    served.client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "none"})
    assert served.engine.submitted[-1].params.structured_outputs is None
    assert prompt_of(served.engine).startswith("<user>")


def test_thinking_can_be_switched_off(served: Served) -> None:
    served.client.messages.create(**ASK, thinking={"type": "disabled"})
    assert prompt_of(served.engine).endswith("<think>\n\n</think>\n\n")
    served.client.messages.create(**ASK, thinking={"type": "adaptive"})
    assert prompt_of(served.engine).endswith("<assistant>")


def test_arguments_that_are_no_object_come_as_text(served: Served) -> None:
    served.says('<tool_call>{"name": "get_weather", "arguments": {"a": 1,,}}</tool_call>')
    answer = served.client.messages.create(**ASK, tools=[TOOL])
    assert answer.content[0].input == {"unparsed_arguments": '{"a": 1,,}'}  # type: ignore[union-attr]
    assert "tool_parse_error" in answer.model_dump()


def test_count_tokens(served: Served) -> None:
    num = served.client.messages.count_tokens(model=MODEL, messages=[USER], tools=[TOOL])
    served.client.messages.create(**ASK, tools=[TOOL])
    assert num.input_tokens == served.engine.submitted[-1].num_prompt


def test_errors_have_its_own_shape(served: Served) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        served.client.messages.create(**ASK, extra_body={"temprature": 1})
    assert bad.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        served.client.messages.create(**{**ASK, "model": "other"})
    for options in ({"api_key": "sk-wrong"}, {"auth_token": "sk-wrong"}):
        wrong = anthropic.Anthropic(base_url=served.url, max_retries=0, **options)  # type: ignore[arg-type]
        with wrong, pytest.raises(anthropic.AuthenticationError):
            wrong.messages.create(**ASK)
    bearer = anthropic.Anthropic(base_url=served.url, max_retries=0, auth_token="sk-one")
    with bearer:
        assert bearer.messages.create(**ASK).stop_reason == "end_turn"


def test_a_failure_in_mid_stream_is_an_error_event(served: Served) -> None:
    served.engine.fail_after = 3
    with pytest.raises(anthropic.APIStatusError, match="on purpose"):
        list(served.client.messages.create(**ASK, stream=True))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{**USER, "x": 1}]}, "messages[0].x"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": 3}]}]}, "messages[0].content[0].input"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "x": 1}]}, "tools[0].x"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto", "name": "x"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"top_p": 3.0}, "top_p"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ],
)  # fmt: skip
def test_bad_bodies(body: dict[str, Any], param: str) -> None:
    engine, state = talking("x")
    answer = InProcess(state).post("/v1/messages", {**ASK, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["type"] == "error" and error["error"]["param"] == param, answer.text
    assert not engine.submitted


def test_deep_input_is_refused() -> None:
    deep: Any = {}
    for _ in range(60):
        deep = {"a": deep}
    block = {"type": "tool_use", "id": "a", "name": "b", "input": deep}
    _, state = talking("x")
    body = {**ASK, "messages": [{"role": "assistant", "content": [block]}]}
    answer = InProcess(state).post("/v1/messages", body)
    assert answer.status_code == 400 and "nested" in json.dumps(answer.json())
