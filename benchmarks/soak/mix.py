"""A mix of calls whose answers depend on nothing but the call, and what an answer says without names and times.

Greedy or seeded, whole or streamed; log-probabilities, choices, stop strings, echo, beams, structured output, tool calls,
three APIs. An answer is reduced to what must be the same in every run: all of it but ids, times and what a cache held.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import httpx

MODEL = "octavo-mini"
TEXTS = (
    "import os\n\n\ndef walk(folder):\n",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox",
    "def fibonacci(n: int) -> int:\n",
)
LONG = "\n".join(f"def step_{i}(value):\n    return value + {i}\n" for i in range(60))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "kind": {"enum": ["file", "folder", "link"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["name", "kind", "size"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a file.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "maxLength": 32}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The bundled model's chat template, and tools, which its own does not show."""
VARYING = frozenset(
    (
        *(
            "id",
            "created",
            "created_at",
            "completed_at",
            "item_id",
            "call_id",
            "system_fingerprint",
        ),
        *("cached_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        *("prompt_tokens_details", "input_tokens_details", "obfuscation"),
    )
)
"""Members that differ between two runs of one call: names, times, and what the prefix cache held."""


class Call(NamedTuple):
    """One call."""

    kind: str
    path: str
    body: dict[str, Any]


class Answer(NamedTuple):
    """What a call came to."""

    status: int
    said: str
    """All that must be the same, as JSON; the error where there is one."""
    worst_gap_s: float
    """The longest silence between two parts of a stream."""
    num_tokens: int


def calls(seed: int) -> list[Call]:
    """One call of each kind; other seeds sample other texts."""
    text, other = TEXTS[seed % len(TEXTS)], TEXTS[(seed + 1) % len(TEXTS)]
    sampled = {"temperature": 1.0, "seed": 1000 + seed, "ignore_eos": True}
    greedy = {"temperature": 0.0, "ignore_eos": True}
    talk = [{"role": "user", "content": f"Tell me about {other.split()[0]} and {seed}."}]
    demand = {"type": "json_schema", "json_schema": {"name": "entry", "schema": SCHEMA}}

    def completion(kind: str, **body: Any) -> Call:
        return Call(kind, "/v1/completions", {"model": MODEL, "prompt": text, **body})

    def chat(kind: str, **body: Any) -> Call:
        body = {"model": MODEL, "messages": talk, **body}
        return Call(kind, "/v1/chat/completions", body)

    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    found = [
        completion("greedy", **greedy, max_tokens=120),
        completion("greedy, streamed", **greedy, max_tokens=160, **streamed),
        completion("seeded, streamed", **sampled, max_tokens=160, **streamed),
        completion("long prompt", **sampled, max_tokens=60, **streamed, prompt=LONG + text),
        completion("two prompts", **sampled, max_tokens=40, prompt=[text, other]),
        completion("log-probabilities", **sampled, max_tokens=60, logprobs=3, **streamed),
        completion("two choices", **sampled, max_tokens=60, n=2, **streamed),
        completion("stop strings", **sampled, max_tokens=120, stop=["\n\n", "return"], **streamed),
        completion("echo", **greedy, max_tokens=24, echo=True, logprobs=1),
        completion("beams", temperature=0.0, max_tokens=16, n=3, use_beam_search=True),
        completion("penalties", **sampled, max_tokens=80, presence_penalty=1.0, top_p=0.9),
        chat("chat", temperature=1.0, seed=seed, max_tokens=80),
        chat("chat, streamed", temperature=1.0, seed=seed, max_tokens=120, **streamed),
        chat("chat, structured", temperature=1.0, seed=seed, max_tokens=160)._replace(),
        chat("chat, structured, streamed", temperature=1.0, seed=seed, max_tokens=160, **streamed),
        chat("tool", temperature=1.0, seed=seed, max_tokens=120, tools=[TOOL]),
        chat(
            "tool, streamed", temperature=1.0, seed=seed, max_tokens=120, tools=[TOOL], **streamed
        ),
        Call("responses", "/v1/responses", {"model": MODEL, "input": other, "temperature": 0.0}),
        Call(
            "messages, streamed",
            "/v1/messages",
            {
                "model": MODEL,
                "messages": talk,
                "max_tokens": 80,
                "stream": True,
                "temperature": 0.0,
            },
        ),
    ]
    for call in found:
        if "structured" in call.kind:
            call.body["response_format"] = demand
        if "tool" in call.kind:
            call.body["tool_choice"] = "required"
    found[-2].body["max_output_tokens"] = 60
    return found


async def perform(client: httpx.AsyncClient, call: Call) -> Answer:
    """Make the call; never raises for what the server or the connection does."""
    try:
        if call.body.get("stream"):
            return await _streamed(client, call)
        response = await client.post(call.path, json=call.body)
    except httpx.HTTPError as error:
        return Answer(0, f"{type(error).__name__}: {error}", 0.0, 0)
    if response.status_code != 200:
        return Answer(response.status_code, response.text, 0.0, 0)
    body = response.json()
    return Answer(200, _plain(body), 0.0, _tokens_of([body]))


async def _streamed(client: httpx.AsyncClient, call: Call) -> Answer:
    """Parts in order; those of several choices choice by choice, since two choices keep no order between them."""
    parts: list[Any] = []
    worst, last = 0.0, time.monotonic()
    async with client.stream("POST", call.path, json=call.body) as response:
        if response.status_code != 200:
            return Answer(response.status_code, (await response.aread()).decode(), 0.0, 0)
        async for line in response.aiter_lines():
            now = time.monotonic()
            if not line.startswith("data: "):
                continue
            worst, last = max(worst, now - last), now
            parts.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
    parts.sort(key=_choice_of)
    is_failed = any(isinstance(part, dict) and part.get("error") for part in parts)
    return Answer(500 if is_failed else 200, _plain(parts), worst, _tokens_of(parts))


def _choice_of(part: Any) -> int:
    choices = part.get("choices") if isinstance(part, dict) else None
    return choices[0]["index"] if choices else 1 << 20


def _plain(value: Any) -> str:
    return json.dumps(_without(value), sort_keys=True, ensure_ascii=False)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in VARYING}
    return [_without(item) for item in value] if isinstance(value, list) else value


def _tokens_of(parts: list[Any]) -> int:
    found = [
        usage.get("completion_tokens", usage.get("output_tokens", 0))
        for part in parts
        if isinstance(part, dict) and (usage := part.get("usage"))
    ]
    return max(found, default=0)
