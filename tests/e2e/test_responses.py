"""/v1/responses under the official client: items, events, tools, conversations, background, tenants."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes import MODEL, FakeEngine, InProcess, ServerThread
from talks import CALL, FUNCTION, NOW, prompt_of, talking

TOOL = {"type": "function", **FUNCTION, "strict": False}
THINKS = f"<think>\nhm\n</think>\n\nI look.\n{CALL}"


class Served:
    """A server that says what a test sets, and clients with two keys."""

    def __init__(self, engine: FakeEngine, server: ServerThread) -> None:
        self.engine = engine
        self.server = server
        self.one = self.client("sk-one")
        self.two = self.client("sk-two")

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=key, max_retries=0)

    def says(self, text: str) -> None:
        self.engine.script = list(text.encode())


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine, state = talking("", keys=("sk-one", "sk-two"), chunks=(4, 1))
    with ServerThread(state) as server:
        made = Served(engine, server)
        with made.one, made.two:
            yield made


@pytest.fixture(autouse=True)
def fresh(served: Served) -> None:
    served.engine.pause_after = served.engine.fail_after = None
    served.says("Hello. ")


def test_a_text(served: Served) -> None:
    answer = served.one.responses.create(
        model=MODEL, input="hi", instructions="Be kind.", temperature=0.5, metadata={"a": "b"}
    )
    assert answer.output_text == "Hello. " and answer.status == "completed"
    assert answer.metadata == {"a": "b"} and answer.temperature == 0.5
    assert prompt_of(served.engine) == "<system>Be kind.<user>hi<assistant>"
    usage = answer.usage
    assert usage is not None and usage.output_tokens == len("Hello. ") + 1
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_what_asks_for_nothing_is_taken(served: Served) -> None:
    answer = served.one.responses.create(
        model=MODEL, input="hi", reasoning={"summary": "auto"}, text={"verbosity": "medium"}
    )
    assert answer.output_text == "Hello. " and answer.reasoning is not None
    assert answer.reasoning.summary is None


def test_items_and_their_events(served: Served) -> None:
    served.says(THINKS)
    ask: dict[str, Any] = {"model": MODEL, "input": "hi", "tools": [TOOL]}
    whole = served.one.responses.create(**ask)
    reasoning, message, call = whole.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert reasoning.content[0].text == "hm"
    assert message.type == "message" and whole.output_text == "I look."
    assert call.type == "function_call" and call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    assert whole.usage is not None and whole.usage.output_tokens_details.reasoning_tokens == 4

    events = list(served.one.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    without_deltas = [kind for kind in kinds if not kind.endswith(".delta")]
    assert without_deltas[2:-1] == [
        "response.output_item.added", "response.content_part.added", "response.reasoning_text.done",
        "response.content_part.done", "response.output_item.done",
        "response.output_item.added", "response.content_part.added", "response.output_text.done",
        "response.content_part.done", "response.output_item.done",
        "response.output_item.added", "response.function_call_arguments.done", "response.output_item.done",
    ]  # fmt: skip
    deltas: dict[str, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.type] = deltas.get(event.type, "") + event.delta  # type: ignore[union-attr]
    assert deltas == {
        "response.reasoning_text.delta": "hm",
        "response.output_text.delta": "I look.",
        "response.function_call_arguments.delta": '{"city": "Oslo"}',
    }
    last = events[-1]
    assert last.type == "response.completed"
    assert bare(last.response.model_dump()) == bare(whole.model_dump())


def bare(answer: Any) -> Any:
    """Without what is drawn or timed."""
    if isinstance(answer, dict):
        return {k: bare(v) for k, v in answer.items() if k not in ("id", "call_id", "created_at")}
    return [bare(value) for value in answer] if isinstance(answer, list) else answer


def test_a_conversation_goes_on(served: Served) -> None:
    served.says(THINKS)
    first = served.one.responses.create(
        model=MODEL, input="hi", tools=[TOOL], instructions="Of the first call alone."
    )  # type: ignore[call-overload]  # a plain dict is a tool
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    served.says("It rains.")
    second = served.one.responses.create(
        model=MODEL, input=[result], previous_response_id=first.id, tools=[TOOL]
    )  # type: ignore[call-overload]
    prompt = prompt_of(served.engine)
    assert "Of the first call alone." not in prompt
    assert f'I look.(thought hm)(call {call.call_id} get_weather {{"city": "Oslo"}})' in prompt
    assert f"<tool>rain(to {call.call_id})" in prompt
    third = served.one.responses.create(model=MODEL, input="thanks", previous_response_id=second.id)
    assert "It rains." in prompt_of(served.engine) and third.previous_response_id == second.id


def test_kept_responses(served: Served) -> None:
    made = served.one.responses.create(model=MODEL, input="hi")
    assert served.one.responses.retrieve(made.id).model_dump() == made.model_dump()
    items = served.one.responses.input_items.list(made.id)
    assert items.data[0].role == "user"  # type: ignore[union-attr]
    with pytest.raises(openai.NotFoundError):
        served.two.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        served.two.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError):
        served.two.responses.delete(made.id)
    served.one.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        served.one.responses.retrieve(made.id)
    gone = served.one.responses.create(model=MODEL, input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        served.one.responses.retrieve(gone.id)


def test_background(served: Served) -> None:
    served.engine.pause_after = 2
    made = served.one.responses.create(model=MODEL, input="hi", background=True)
    assert made.status == "queued"
    assert served.engine.paused.acquire(timeout=10)
    with pytest.raises(openai.BadRequestError):
        served.one.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    served.server.on_loop(served.engine.release.set)
    tasks = list(served.server.state.background.values())
    for task in tasks:
        served.server.on_loop(lambda task=task: task)
    done = served.one.responses.retrieve(made.id)
    assert done.status == "completed" and done.output_text == "Hello. "
    served.server.on_loop(served.engine.release.clear)
    made = served.one.responses.create(model=MODEL, input="hi", background=True)
    assert served.engine.paused.acquire(timeout=10)
    cancelled = served.one.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert f"{made.id}" in served.engine.cancelled
    assert served.one.responses.retrieve(made.id).status == "cancelled"
    assert not served.server.state.background


def test_an_end_at_the_limit_is_incomplete(served: Served) -> None:
    made = served.one.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert made.status == "incomplete" and made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens" and made.output_text == "Hel"


def test_a_failure_in_mid_stream_is_an_event(served: Served) -> None:
    served.engine.fail_after = 3
    events = list(served.one.responses.create(model=MODEL, input="hi", stream=True))
    last = events[-1]
    assert last.type == "response.failed" and last.response.error is not None
    assert "on purpose" in last.response.error.message


def test_forced_calls_and_formats(served: Served) -> None:
    served.says(NOW)
    choice: Any = {"type": "function", "name": "get_weather"}
    served.one.responses.create(model=MODEL, input="hi", tools=[TOOL], tool_choice=choice)  # type: ignore[call-overload]
    shape = served.engine.submitted[-1].params.structured_outputs
    assert shape is not None and shape.grammar is not None and "get_weather" in shape.grammar
    served.says('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    made = served.one.responses.create(model=MODEL, input="hi", text=wanted)
    shape = served.engine.submitted[-1].params.structured_outputs
    assert shape is not None and made.output_text == '{"a": 1}'


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{**USER, "x": 1}]}, "input[0].x"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, None),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["message.output_text.logprobs", "x"]}, "include"),
        ({"include": ["message.output_text.logprobs"] * 17}, "include"),
        ({"truncation": "some"}, "truncation"),
        ({"input": "x" * 3000}, "input"),
        ({"input": "x" * 3000, "truncation": "auto"}, "input"),
        ({"max_output_tokens": 2048, "truncation": "auto"}, "max_output_tokens"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"conversation": "x"}, "conversation"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "store"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": "x" * 600}}, "metadata[...]"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"instrucions": "x"}, "instrucions"),
    ],
)  # fmt: skip
def test_bad_bodies(body: dict[str, Any], param: str | None) -> None:
    engine, state = talking("x")
    answer = InProcess(state).post("/v1/responses", {"input": "hi", **body})
    assert answer.status_code in (400, 404), answer.text
    if param is not None:
        assert answer.json()["error"]["param"] == param
    assert not engine.submitted


def test_queries_that_are_not_honoured_are_refused(served: Served) -> None:
    made = served.one.responses.create(model=MODEL, input="hi")
    with pytest.raises(openai.BadRequestError):
        list(served.one.responses.retrieve(made.id, stream=True))
    with pytest.raises(openai.BadRequestError):
        served.one.responses.cancel(made.id)


@contextlib.contextmanager
def victim(folder: Path, pause_after: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    script = Path(__file__).with_name("response_victim.py")
    env = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(folder), str(pause_after)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def test_a_conversation_goes_on_after_a_kill(tmp_path: Path) -> None:
    ask = {"model": MODEL, "max_output_tokens": 8}
    with victim(tmp_path) as (process, url), openai.OpenAI(base_url=url, api_key="one") as client:
        first = client.responses.create(**ask, input="hi")
        gone = client.responses.create(**ask, input="forget me")
        client.responses.delete(gone.id)
        process.send_signal(signal.SIGKILL)
    with (
        victim(tmp_path, 4) as (process, url),
        openai.OpenAI(base_url=url, api_key="one") as client,
    ):
        again = client.responses.retrieve(first.id)
        assert again == first
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone.id)
        with pytest.raises(openai.NotFoundError):
            client.with_options(api_key="two").responses.retrieve(first.id)
        with client.responses.create(
            **ask, input="and?", previous_response_id=first.id, stream=True
        ) as stream:
            assert next(iter(stream)).type == "response.created"
        under_way = client.responses.create(
            **ask, input="more", previous_response_id=first.id, background=True
        )
        while client.responses.retrieve(under_way.id).status == "queued":
            pass
        process.send_signal(signal.SIGKILL)
    with victim(tmp_path) as (process, url), openai.OpenAI(base_url=url, api_key="one") as client:
        cut_off = client.responses.retrieve(under_way.id)
        assert cut_off.status == "failed" and cut_off.error is not None
        assert cut_off.error.code == "server_restarted"
        follows = client.responses.create(**ask, input="well?", previous_response_id=first.id)
        assert follows.usage is not None and first.usage is not None
        assert follows.usage.input_tokens > first.usage.input_tokens
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
