"""Fields of /v1/responses beyond a text: log-probabilities of the message alone, and conversations cut to fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes import MAX_MODEL_LEN, MODEL, InProcess
from octavo.server.responses.history import units_of
from talks import CALL, FUNCTION, prompt_of, talking

TOOL = {"type": "function", **FUNCTION, "strict": False}
LOGPROBS = "message.output_text.logprobs"
THINKS = f"<think>\nhm\n</think>\n\nNaïve 🦊.\n{CALL} Then more."


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


def said(rows: list[dict[str, Any]]) -> str:
    return bytes(byte for row in rows for byte in row["bytes"]).decode()


@pytest.mark.parametrize("chunks", [(1,), (3, 1), (100,)])
def test_logprobs_are_those_of_the_messages_tokens(chunks: tuple[int, ...]) -> None:
    body = {
        "model": MODEL,
        "input": "hi",
        "tools": [TOOL],
        "include": [LOGPROBS],
        "top_logprobs": 2,
    }
    engine, state = talking(THINKS, chunks=chunks)
    server = InProcess(state)
    whole = server.post("/v1/responses", body).json()
    assert engine.submitted[-1].params.logprobs == 2 and whole["top_logprobs"] == 2
    messages = [item["content"][0] for item in whole["output"] if item["type"] == "message"]
    assert [part["text"] for part in messages] == ["Naïve 🦊.", "Then more."]
    for part in messages:
        rows = part["logprobs"]
        assert said(rows) == part["text"]
        assert {row["logprob"] for row in rows} == {-1.5}
        assert all(len(row["top_logprobs"]) == 2 for row in rows)
    events = events_of(server.post("/v1/responses", {**body, "stream": True}).text)
    for index, part in zip((1, 3), messages, strict=True):
        own = [event for event in events if event.get("output_index") == index]
        deltas = [event for event in own if event["type"] == "response.output_text.delta"]
        assert [row for event in deltas for row in event["logprobs"]] == part["logprobs"]
        assert all(said(event["logprobs"]) == event["delta"] for event in deltas)
        [done] = [event for event in own if event["type"] == "response.output_text.done"]
        assert done["logprobs"] == part["logprobs"]
    last = events[-1]["response"]["output"]
    assert [item["content"][0]["logprobs"] for item in (last[1], last[3])] == [
        part["logprobs"] for part in messages
    ]


@pytest.mark.parametrize(
    ("asked", "most"),
    [({}, None), ({"include": []}, None), ({"include": [LOGPROBS]}, 0), ({"top_logprobs": 3}, 3)],
)
def test_logprobs_come_where_they_are_asked_for(asked: dict[str, Any], most: int | None) -> None:
    engine, state = talking("Plain.", tools=None, thinks=None)
    made = InProcess(state).post("/v1/responses", {"input": "hi", **asked}).json()
    assert engine.submitted[-1].params.logprobs == most
    rows = made["output"][0]["content"][0]["logprobs"]
    assert said(rows) == ("" if most is None else "Plain.")
    assert all(len(row["top_logprobs"]) == most for row in rows)


def test_a_token_that_reaches_into_the_text_is_the_texts_and_counted_once() -> None:
    """Tokens of several characters, the first across the marker before the text and one across two pieces."""
    from octavo.core.result import TokenLogprobs
    from octavo.engine.frontend import Delta
    from octavo.server.responses.logprobs import TextLogprobs

    class Names:
        token_text = str

        def token_bytes(self, token_id: int) -> bytes:
            return str(token_id).encode()

    rows = tuple(TokenLogprobs((n,), (-1.0,), 1) for n in range(5))
    told = TextLogprobs(Names())  # type: ignore[arg-type]  # as much of it as is used
    # "</think>\n" is 0..9, then "Yes, no." in tokens 1 ("k>\nYe"), 2 ("s, n"), 3 ("o.") and 4, the end, without text.
    told.add(Delta(index=0, token_ids=(0, 1), logprobs=rows[:2], offsets=(0, 6)), [])
    told.add(Delta(index=0, token_ids=(2,), logprobs=rows[2:3], offsets=(11,)), [(9, 13)])
    assert [row.token for row in told.of("Yes,")] == ["1", "2"]
    told.add(Delta(index=0, token_ids=(3, 4), logprobs=rows[3:], offsets=(15, 17)), [(13, 17)])
    assert [[row.token for row in told.of(text)] for text in (" n", "o.")] == [[], ["3"]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_oldest_turns_are_left_out_and_it_is_told() -> None:
    engine, state = talking("Yes.", tools=None, thinks=None)
    server = InProcess(state)
    items: list[dict[str, Any]] = [{"role": "developer", "content": "Be kind."}]
    for turn in range(9):
        answer = {"type": "message", "role": "assistant", "content": f"answer {turn} " + "y" * 140}
        items += [user(f"turn {turn} " + "x" * 150), answer]
    items.append(user("And now?"))
    asked = {"instructions": "First of all.", "input": items, "max_output_tokens": 100}
    refused = server.post("/v1/responses", asked)
    assert refused.status_code == 400 and not engine.submitted
    made = server.post("/v1/responses", {**asked, "truncation": "auto"}).json()
    prompt = prompt_of(engine)
    assert made["truncation"] == "auto"
    num_turns = made["truncated_items"] // 2
    assert made["truncated_items"] == 2 * num_turns and 3 <= num_turns <= 5
    assert prompt.startswith("<system>First of all.") and "Be kind." in prompt
    assert "And now?" in prompt and f"turn {num_turns} " in prompt
    assert f"turn {num_turns - 1} " not in prompt and f"answer {num_turns - 1} " not in prompt
    most = MAX_MODEL_LEN - 100
    assert most - 330 < len(engine.submitted[-1].token_ids) <= most, "no more than need be"
    small = server.post("/v1/responses", {"input": "hi", "truncation": "auto"}).json()
    assert "truncated_items" not in small

    kept = server.post("/v1/responses", {**asked, "truncation": "auto"}).json()["id"]
    follows = {"input": "Go on.", "previous_response_id": kept, "truncation": "auto"}
    again = server.post("/v1/responses", {**follows, "max_output_tokens": 100}).json()
    assert again["truncated_items"] >= 2 and "Go on." in prompt_of(engine)
    assert server.post("/v1/responses", {**follows, "truncation": None}).status_code == 400


def test_calls_are_left_out_with_their_results() -> None:
    engine, state = talking("Done.")
    items = [user("Look.")]
    for number in range(9):
        name = {"type": "function_call", "call_id": f"c{number}", "name": "now", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": f"c{number}", "output": "z" * 300}
        items += [{"type": "reasoning", "summary": [], "content": []}, name, result]
    made = InProcess(state).post("/v1/responses", {"input": items, "truncation": "auto"}).json()
    prompt = prompt_of(engine)
    assert made["truncated_items"] % 3 == 0 and "<user>Look." in prompt and "(call c8" in prompt
    calls = [number for number in range(9) if f"(call c{number}" in prompt]
    assert calls == [number for number in range(9) if f"(to c{number})" in prompt]
    assert calls == list(range(9 - len(calls), 9)) and 4 <= len(calls) < 9


def test_what_may_be_left_out() -> None:
    call, result = {"type": "function_call"}, {"type": "function_call_output"}
    said = {"role": "assistant"}
    system = {"role": "system"}
    assert units_of([]) == units_of([user("a")]) == units_of([system, user("a"), said]) == []
    assert units_of([said, user("a"), said, system, user("b")]) == [[0], [1, 2]]
    assert units_of([user("a"), call, call, result, result, said, call, result, said]) == [
        [1, 2, 3, 4],
        [5, 6, 7],
    ]
