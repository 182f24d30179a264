"""Bodies made from the request types: a good one per route, one to three of its places replaced by what should not be there."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from msgspec import inspect as types

from hostile.shots import Shot
from octavo.server.contract import CONTRACTS

_USER = {"role": "user", "content": "Say a word."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "def f(", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [_USER], "max_tokens": 3, "tools": [_TOOL]},
    "/v1/responses": {"input": "hi", "max_output_tokens": 3},
    "/v1/messages": {"model": "octavo-mini", "messages": [_USER], "max_tokens": 3},
    "/v1/messages/count_tokens": {"model": "octavo-mini", "messages": [_USER]},
    "/tokenize": {"prompt": "a b c"},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/v1/embeddings": {"input": "a"},
    "/pooling": {"input": "a"},
    "/classify": {"input": "a"},
    "/score": {"text_1": "a", "text_2": "b"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/v1/batches": {
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    },
}
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.0,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    2**31,
    2**63,
    2**64,
    10**40,
    -(2**63) - 1,
    0.5,
    "",
    " ",
    "0",
    "a" * 70_000,
    "\u0000",
    "\ud800",
    "\u202e\u0301" * 50,
    "null",
    "${jndi:ldap://a}",
    "../../../etc/passwd",
    "{{7*7}}",
    "' OR 1=1 --",
    [],
    [[]],
    [None],
    [1] * 3000,
    ["a"] * 3000,
    [[1]],
    [{}],
    {},
    {"": {}},
    {"a": None},
    {"type": "object"},
    {"type": None},
    {"__class__": "x"},
    {"$ref": "#"},
    {str(n): n for n in range(300)},
    [[[[[[[[[]]]]]]]]],
)


def fuzzed(count: int, seed: int) -> Iterator[Shot]:
    """`count` bodies, the same for the same seed."""
    drawn = random.Random(seed)
    fields = {path: _fields(path) for path in GOOD}
    for _ in range(count):
        path = drawn.choice(list(GOOD))
        body = json.loads(json.dumps(GOOD[path]))
        for _ in range(drawn.choice((1, 1, 2, 3))):
            _spoil(body, fields[path], drawn)
        encoded = json.dumps(body).encode("utf-8", "surrogatepass")
        yield Shot(name=f"fuzz {path}", path=path, body=_scramble(encoded, drawn))


SETTINGS: dict[str, tuple[Any, ...]] = {
    "n": (1, 2, 4),
    "temperature": (0, 1e-9, 0.7, 2),
    "top_p": (1e-9, 0.5, 1),
    "top_k": (-1, 0, 1, 5, 100_000),
    "min_p": (0, 0.5, 1),
    "seed": (0, -1, 2**63 - 1, None),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 2),
    "logit_bias": ({"5": -100}, {"5": 100}, {str(n): -100 for n in range(300)}),
    "stop": (["a"], ["\n", " ", "e"], ["\u0000", "\U0001f600" * 8]),
    "stop_token_ids": ([5], list(range(300))),
    "min_tokens": (0, 1, 3),
    "ignore_eos": (True, False),
    "skip_special_tokens": (True, False),
    "stream": (True, False),
    "allowed_token_ids": ([5], [5, 6, 7], list(range(100, 400))),
    "bad_words": (["a"], ["the", " the", "\n"]),
    "truncate_prompt_tokens": (1, 5, 200),
    "include_stop_str_in_output": (True, False),
    "return_token_ids": (True,),
    "cache_salt": ("a", "\u202e"),
    "structured_outputs": (
        {"regex": "[ab]{1,3}"},
        {"choice": ["yes", "no", "\U0001f600"]},
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        {"grammar": 'start: "a" start | "b"'},
    ),
}
"""What a caller may well ask for; the trouble is in the combinations."""
_TEXTS = (
    "a",
    "def f(x):\n",
    "\U0001f600" * 9,
    "\u0301" * 30,
    "one two " * 90,
    " ",
    "\t\n\r",
    "<|im_start|>user\n",
)
_OF_CHAT = {
    "logprobs": (True,),
    "top_logprobs": (0, 20),
    "tool_choice": ("none", "auto", "required"),
}
_OF_COMPLETIONS = {
    "logprobs": (0, 1, 5),
    "prompt_logprobs": (0, 1),
    "echo": (True,),
    "suffix": (None,),
    "use_beam_search": (False,),
    "prompt": ("a", [5], [5] * 300, ["a", "b"], [[5], [6, 7]]),
}


def plausible(count: int, seed: int) -> Iterator[Shot]:
    """Bodies of settings that are right one by one, drawn together. Many run; some contradict each other."""
    drawn = random.Random(seed)
    for _ in range(count):
        is_chat = drawn.random() < 0.5
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        body: dict[str, Any] = {"max_tokens": drawn.choice((1, 2, 5, 12))}
        if is_chat:
            body["messages"] = [{"role": "user", "content": drawn.choice(_TEXTS)}]
            body |= {"tools": [_TOOL]} if drawn.random() < 0.3 else {}
        else:
            body["prompt"] = drawn.choice(_TEXTS)
        table = SETTINGS | (_OF_CHAT if is_chat else _OF_COMPLETIONS)
        for name in drawn.sample(list(table), drawn.randint(0, 6)):
            body[name] = copy.deepcopy(drawn.choice(table[name]))
        yield Shot(name="plausible", path=path, body=json.dumps(body).encode())


def _fields(path: str) -> list[str]:
    kind = CONTRACTS["POST", path].body
    assert kind is not None
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return [field.encode_name for field in info.fields]


def _spoil(body: Any, fields: list[str], drawn: random.Random) -> None:
    """Replace, add or remove one thing, at the top or further in."""
    odd = copy.deepcopy(drawn.choice(ODD))
    if drawn.random() < 0.6:
        body[drawn.choice(fields)] = odd
        return
    node: Any = body
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = drawn.choice(keys)
        if not isinstance(node[key], dict | list) or drawn.random() < 0.3:
            break
        node = node[key]
    if drawn.random() < 0.3:
        del node[key]
    elif isinstance(node, dict) and drawn.random() < 0.3:
        node[str(odd)[:300]] = node.pop(key)
    else:
        node[key] = odd


def _scramble(body: bytes, drawn: random.Random) -> bytes:
    """Mostly as it is; sometimes cut, doubled or with bytes changed."""
    choice = drawn.random()
    if choice < 0.9:
        return body
    at = drawn.randrange(len(body) + 1)
    if choice < 0.93:
        return body[:at]
    if choice < 0.95:
        return body[:at] + body
    return body[:at] + bytes(drawn.randrange(256) for _ in range(drawn.randint(1, 8))) + body[at:]
