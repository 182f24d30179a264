"""fold(stream) == whole answer, over random parameters and every way of cutting tokens into events."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeEngine, InProcess, make_state, sse_chunks

CHUNKS = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
COMMON = {
    "max_tokens": st.integers(1, 60),
    "n": st.integers(1, 3),
    "seed": st.integers(0, 1000),
    "stop": st.sampled_from([None, "fox", ["🦊", "caf"], ["é", "quick brown"], "T"]),
    "stop_token_ids": st.sampled_from([None, [0x2E], [0xF0]]),
    "include_stop_str_in_output": st.booleans(),
    "prompt_logprobs": st.sampled_from([None, 0, 2]),
    "return_token_ids": st.booleans(),
    "ignore_eos": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "echo": st.booleans(),
}
COMPLETION = st.fixed_dictionaries(
    {
        **COMMON,
        "prompt": st.sampled_from(["a", "hello ✓", [65, 66], ["one", "two"], [[1, 2], [3]]]),
        "logprobs": st.sampled_from([None, 0, 2, 5]),
    }
)
CHAT = st.fixed_dictionaries(
    {
        **COMMON,
        "messages": st.sampled_from(
            [[{"role": "user", "content": "hi"}], [{"role": "system", "content": "ü"}] * 2]
        ),
        "logprobs": st.booleans(),
    }
).flatmap(lambda body: st.just(body) if not body["logprobs"] else _with_tops(body))


def _with_tops(body: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([0, 1, 4]).map(lambda tops: {**body, "top_logprobs": tops})


ENGINE = FakeEngine()
ENGINE.eos_after = 40
SERVER = InProcess(make_state(ENGINE))


def both(path: str, body: dict[str, Any], chunks: tuple[int, ...]) -> tuple[Any, list[Any]]:
    engine, server = ENGINE, SERVER
    engine.chunks = (1,)
    whole = server.post(path, body)
    assert whole.status_code == 200, whole.text
    engine.chunks = chunks
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = server.post(path, {**body, "stream": True, "stream_options": options})
    assert stream.status_code == 200, stream.text
    return whole.json(), sse_chunks(stream.text)


def fold_logprobs(parts: list[dict[str, list[Any]] | None]) -> dict[str, list[Any]] | None:
    """Parallel lists, joined."""
    given_parts = [part for part in parts if part is not None]
    if not given_parts:
        return None
    return {key: [row for part in given_parts for row in part[key]] for key in given_parts[0]}


def cut_offsets(choice: dict[str, Any]) -> None:
    """Tokens of a stop string that was cut off begin at the end of the text."""
    offsets = choice["logprobs"]["text_offset"]
    choice["logprobs"]["text_offset"] = [min(at, len(choice["text"])) for at in offsets]


def fold_choice(pieces: list[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    """A reader's own fold, written apart from the server's."""
    folded = {
        **whole,
        "logprobs": fold_logprobs([piece["logprobs"] for piece in pieces]),
        "finish_reason": pieces[-1]["finish_reason"],
        "stop_reason": pieces[-1]["stop_reason"],
    }
    assert all(piece["finish_reason"] is None for piece in pieces[:-1])
    if "text" in whole:
        folded["text"] = "".join(piece["text"] for piece in pieces)
        if folded["logprobs"]:
            cut_offsets(folded)
    else:
        content = "".join(piece["delta"].get("content", "") for piece in pieces)
        folded["message"] = {"role": pieces[0]["delta"]["role"], "content": content}
        assert all("role" not in piece["delta"] for piece in pieces[1:])
    if "token_ids" in whole:
        folded["token_ids"] = [i for piece in pieces for i in piece.get("token_ids", [])]
    for key in ("prompt_token_ids", "prompt_logprobs"):
        if key in whole:
            folded[key] = pieces[0][key]
    return folded


def check(path: str, body: dict[str, Any], chunks: tuple[int, ...]) -> None:
    whole, streamed = both(path, body, chunks)
    *pieces, last = streamed
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in pieces:
        assert chunk["id"] == last["id"]
        assert chunk["usage"]["completion_tokens"] <= last["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            by_index.setdefault(choice["index"], []).append(choice)
    assert [choice["index"] for choice in whole["choices"]] == sorted(by_index)
    for choice in whole["choices"]:
        folded = fold_choice(by_index[choice["index"]], choice)
        assert json.dumps(folded, sort_keys=True) == json.dumps(choice, sort_keys=True)
    if body["return_token_ids"]:
        num_ids = sum(len(choice["token_ids"]) for choice in whole["choices"])
        assert num_ids == whole["usage"]["completion_tokens"]


@settings(max_examples=50, deadline=None, database=None)
@given(body=COMPLETION, chunks=CHUNKS)
def test_completions_fold(body: dict[str, Any], chunks: tuple[int, ...]) -> None:
    check("/v1/completions", body, chunks)


@settings(max_examples=50, deadline=None, database=None)
@given(body=CHAT, chunks=CHUNKS)
def test_chat_fold(body: dict[str, Any], chunks: tuple[int, ...]) -> None:
    check("/v1/chat/completions", body, chunks)
