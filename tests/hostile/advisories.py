"""Requests after published advisories, one group per class of needs; each was fatal or ignored somewhere.

The names say which class (S6: programs of users, S7: sizes, S8: fatal to an engine, ...).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hostile.shots import REFUSED, Shot, shot

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
_USER = {"role": "user", "content": "hi"}
_SHORT = {"max_tokens": 2}
HUGE = (10**9, 2**31, 2**63, 2**64, 10**30, -1, -(2**63), 1e308, -0.5)
REGEXES = (
    "(a+)+$" * 8,
    "(a|aa)+" * 20,
    "(?:" * 500 + ")" * 500,
    "a{1,100000}",
    "[a-z]{0,65535}" * 50,
)
PYTHON = (
    "__import__('os').system('touch /tmp/octavo-hostile')",
    "(lambda: ().__class__.__bases__[0].__subclasses__())()",
    "exec('raise SystemExit')",
)
TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
)


def advisories() -> Iterator[Shot]:
    """All of them."""
    yield from _code()
    yield from _programs()
    yield from _sizes()
    yield from _fatal()
    yield from _tensors_and_media()
    yield from _tenants()


def _completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a", **_SHORT, **fields}


def _chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [_USER], **_SHORT, **fields}


def _code() -> Iterator[Shot]:
    """S2, S3: what is data is never run."""
    for text in PYTHON:
        yield shot("S3 python in a prompt", COMPLETIONS, _completion(prompt=text), refused=False)
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": text}}
        history = [_USER, {"role": "assistant", "tool_calls": [call]}]
        yield shot("S3 python as arguments", CHAT, _chat(messages=history), refused=False)
        yield shot("S3 python as a schema", CHAT, _chat(response_format={"type": text}))
        tool = {"type": "function", "function": {"name": text, "parameters": {}}}
        yield shot("S3 python as a tool's name", CHAT, _chat(tools=[tool]), refused=False)
    for text in TEMPLATES:
        yield shot("S2 template from a caller", CHAT, _chat(chat_template=text))
        yield shot(
            "S2 template in kwargs", CHAT, _chat(chat_template_kwargs={"chat_template": text})
        )
        message = [{"role": "user", "content": text}]
        yield shot("S2 template in a message", CHAT, _chat(messages=message), refused=False)
        rerank = {"query": text, "documents": ["a"]}
        yield shot("S2 template through rerank", "/v1/rerank", rerank)


def _programs() -> Iterator[Shot]:
    """S6, S11: programs of users are compiled under a budget, however they are built."""
    for regex in REGEXES:
        yield shot(
            "S6 regex", COMPLETIONS, _completion(structured_outputs={"regex": regex}), refused=False
        )
        for schema in (
            {"pattern": regex},
            {"properties": {"a": {"type": "string", "pattern": regex}}},
        ):
            kind = {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "object", **schema}},
            }
            yield shot("S6 regex in a schema", CHAT, _chat(response_format=kind), refused=False)
        tool = {
            "type": "function",
            "function": {
                "name": "f",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "string", "pattern": regex}},
                },
            },
        }
        yield shot(
            "S6 regex in a tool", CHAT, _chat(tools=[tool], tool_choice="required"), refused=False
        )
    for grammar in (
        "start: start",
        "start: a\na: b\nb: a",
        "start: (" * 200,
        "start: " + "x " * 5000,
        "%ignore /" + "a" * 3000,
    ):
        yield shot(
            "S11 grammar",
            COMPLETIONS,
            _completion(structured_outputs={"grammar": grammar}),
            refused=False,
        )
    for depth in (30, 500, 5000):
        node: dict[str, Any] = {}
        for _ in range(min(depth, 200)):
            node = {"type": "object", "properties": {"a": node}}
        kind = {"type": "json_schema", "json_schema": {"name": "a", "schema": node}}
        yield shot(
            f"S11 schema {depth} deep", CHAT, _chat(response_format=kind), refused=depth > 30
        )
        raw = (
            b'{"prompt":"a","structured_outputs":{"json":'
            + b'{"a":' * depth
            + b"1"
            + b"}" * depth
            + b"}}"
        )
        yield Shot(name="S11 nested JSON", path=COMPLETIONS, body=raw, statuses=REFUSED)
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    yield shot(
        "S11 mutual recursion",
        COMPLETIONS,
        _completion(structured_outputs={"json": loop}),
        refused=False,
    )
    yield shot(
        "S11 outside reference",
        COMPLETIONS,
        _completion(structured_outputs={"json": {"$ref": "http://127.0.0.1/a"}}),
    )
    for kwargs in ({"a": "x" * 70_000}, {"x" * 300: 1}, {str(n): n for n in range(100)}):
        yield shot("S6 template kwargs", CHAT, _chat(chat_template_kwargs=kwargs))
    yield shot(
        "S8 malformed after a valid one",
        COMPLETIONS,
        _completion(structured_outputs={"choice": ["a"]}),
        refused=False,
    )
    yield shot(
        "S8 malformed after a valid one",
        COMPLETIONS,
        _completion(structured_outputs={"grammar": "start: ]["}),
    )


def _sizes() -> Iterator[Shot]:
    """S7: every number, list, string and depth."""
    numbers = (
        "n",
        "best_of",
        "logprobs",
        "prompt_logprobs",
        "seed",
        "top_k",
        "min_tokens",
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "truncate_prompt_tokens",
        "priority",
        "repetition_penalty",
        "length_penalty",
    )
    for name in numbers:
        for value in HUGE:
            fits = name in (
                "seed",
                "priority",
                "top_k",
                "presence_penalty",
                "truncate_prompt_tokens",
                "logprobs",
                "prompt_logprobs",
                "length_penalty",
            )
            yield shot(f"S7 {name}", COMPLETIONS, _completion(**{name: value}), refused=not fits)
        for value in ("NaN", "Infinity", "-Infinity"):
            body = (
                json.dumps(_completion(**{name: 0}))
                .replace(f'"{name}": 0', f'"{name}": {value}')
                .encode()
            )
            yield Shot(name=f"S7 {name} {value}", path=COMPLETIONS, body=body, statuses=REFUSED)
    for count in (17, 1000, 100_000):
        yield shot("S7 stop list", COMPLETIONS, _completion(stop=["x"] * count))
        yield shot("S7 bad words", COMPLETIONS, _completion(bad_words=["x"] * max(count, 2000)))
        yield shot("S7 allowed ids", COMPLETIONS, _completion(allowed_token_ids=[10**8] * count))
    yield shot("S7 prompts", COMPLETIONS, {**_SHORT, "prompt": ["a"] * 5000})
    yield shot("S7 prompts times n", COMPLETIONS, {**_SHORT, "prompt": ["a"] * 512, "n": 64})
    yield shot("S7 token ids", COMPLETIONS, {**_SHORT, "prompt": [0, -1]})
    yield shot("S7 token ids", COMPLETIONS, {**_SHORT, "prompt": [2**31]})
    yield shot("S7 bias", COMPLETIONS, _completion(logit_bias={str(n): 1 for n in range(5000)}))
    yield shot("S7 bias", COMPLETIONS, _completion(logit_bias={"-1": 1}))
    yield shot("S7 bias", COMPLETIONS, _completion(logit_bias={"a": 1}))
    yield shot("S7 long prompt", COMPLETIONS, {**_SHORT, "prompt": "word " * 200_000})
    yield shot("S7 one long word", "/tokenize", {"prompt": "a" * 2_000_000}, refused=False)
    yield shot("S7 messages", CHAT, _chat(messages=[_USER] * 5000))
    yield shot(
        "S7 tools",
        CHAT,
        _chat(tools=[{"type": "function", "function": {"name": f"f{n}"}} for n in range(300)]),
    )
    yield shot("S7 salt", COMPLETIONS, _completion(cache_salt="x" * 100_000))
    for depth in (100, 5_000, 200_000):
        yield Shot(
            name="S7 nested",
            path=CHAT,
            body=b'{"messages":' + b"[" * depth + b"]" * depth + b"}",
            statuses=REFUSED,
        )
        yield Shot(
            name="S7 nested, open", path=CHAT, body=b'{"messages":' + b"[" * depth, statuses=REFUSED
        )
    for field in ("model", "user", "cache_salt"):
        yield shot(f"S7 {field}", COMPLETIONS, _completion(**{field: "\u0000" * 400}))
    for batch in (
        {"input_file_id": "../../etc/passwd", "endpoint": COMPLETIONS, "completion_window": "24h"},
        {
            "input_file_id": "http://169.254.169.254/",
            "endpoint": COMPLETIONS,
            "completion_window": "24h",
        },
    ):
        yield shot("S5 batch file", "/v1/batches", batch)
    for path in (
        "/v1/files/..%2f..%2fetc%2fpasswd",
        "/v1/files/%00",
        "/v1/models/" + "a" * 5000,
        "/v1/responses/' OR 1=1 --",
    ):
        yield Shot(name="S15 path", path=path, method="GET", headers={}, statuses=REFUSED)


def _fatal() -> Iterator[Shot]:
    """S8: combinations that ended an engine elsewhere."""
    yield shot(
        "S8 penalties and logprobs",
        COMPLETIONS,
        _completion(presence_penalty=2, frequency_penalty=-2, repetition_penalty=0.01, logprobs=5),
        refused=False,
    )
    yield shot("S8 salt", COMPLETIONS, _completion(cache_salt="a"), refused=False)
    yield shot(
        "S8 prompt logprobs", COMPLETIONS, _completion(prompt_logprobs=20, echo=True), refused=False
    )
    yield shot(
        "S8 prompt logprobs",
        COMPLETIONS,
        _completion(prompt_logprobs=20, stream=True),
        refused=False,
    )
    yield shot("S8 no tokens allowed", COMPLETIONS, _completion(allowed_token_ids=[]))
    yield shot(
        "S8 one token allowed, and forbidden",
        COMPLETIONS,
        _completion(allowed_token_ids=[5], logit_bias={"5": -100}),
        refused=False,
    )
    yield shot(
        "S8 beams",
        COMPLETIONS,
        _completion(use_beam_search=True, n=8, best_of=8, temperature=0),
        refused=False,
    )
    yield shot(
        "S8 everything at once",
        COMPLETIONS,
        _completion(
            n=4,
            logprobs=5,
            prompt_logprobs=5,
            echo=True,
            stop=["a", "b"],
            min_tokens=2,
            seed=1,
            temperature=2,
            top_p=0.01,
            min_p=1,
            top_k=1,
        ),
        refused=False,
    )
    yield shot("S8 min over max", COMPLETIONS, _completion(min_tokens=5))
    yield shot(
        "S8 pattern of another kind",
        CHAT,
        _chat(
            tools=[
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "string", "pattern": 7}},
                }
            ],
            tool_choice="required",
        ),
    )
    yield shot(
        "S8 named tool that is none",
        CHAT,
        _chat(
            tools=[{"type": "function", "function": {"name": "f"}}],
            tool_choice={"type": "function", "function": {"name": "g"}},
        ),
    )
    yield shot("S8 roles", CHAT, _chat(messages=[{"role": "tool", "content": "a"}]), refused=False)
    yield shot(
        "S8 roles", CHAT, _chat(messages=[{"role": "nobody", "content": "a"}]), refused=False
    )
    yield shot("S8 surrogates", CHAT, _chat(messages=[{"role": "user", "content": "\ud800"}]))
    for text in (
        "\ud83d",
        "a\u0000b",
        "\u202e" * 100,
        "\ufffe",
        "<|im_end|>" * 50,
        "<|endoftext|>",
    ):
        yield shot("S8 odd text", COMPLETIONS, _completion(prompt=text), refused=False)
        yield shot("S8 odd stop", COMPLETIONS, _completion(stop=[text]), refused=False)
    for body in (
        b"",
        b"null",
        b"[]",
        b"7",
        b'"a"',
        b"{",
        b'{"a":1,}',
        b'{"prompt":"a","prompt":"b"}',
        b"\xff\xfe{}",
        b"{}" * 2,
        b"\x00" * 64,
    ):
        for path in (COMPLETIONS, CHAT, RESPONSES, MESSAGES, "/tokenize", "/v1/embeddings"):
            yield Shot(
                name="S8 not a body",
                path=path,
                body=body,
                statuses=None if b"prompt" in body else REFUSED,
            )


def _tensors_and_media() -> Iterator[Shot]:
    """S5, S9, S10: nothing is fetched, decoded or taken as a tensor."""
    urls = (
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "http://127.0.0.1:22/",
        "gopher://127.0.0.1/",
        "http://a@127.0.0.1\\@b/",
        "http://[::ffff:127.0.0.1]/",
        "data:image/png;base64,iVBORw0KGgo=",
    )
    for url in urls:
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "file", "file": {"file_data": url}},
        ):
            yield shot("S5 media", CHAT, _chat(messages=[{"role": "user", "content": [part]}]))
        image = {"type": "image", "source": {"type": "url", "url": url}}
        yield shot(
            "S5 media",
            MESSAGES,
            {**_SHORT, "model": "octavo-mini", "messages": [{"role": "user", "content": [image]}]},
        )
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
        yield shot("S5 media", RESPONSES, {"input": [item]})
    yield shot("S10 embeds", COMPLETIONS, {**_SHORT, "prompt_embeds": "AAAA"})
    yield shot("S10 embeds", CHAT, _chat(prompt_embeds=["AAAA"]))
    yield shot("S9 media kwargs", "/tokenize", {"prompt": "a", "mm_processor_kwargs": {"a": 1}})
    yield shot("S9 media kwargs", CHAT, _chat(mm_processor_kwargs={"num_crops": 10**9}))


def _tenants() -> Iterator[Shot]:
    """S4, S12: no header of a caller names anything that others share."""
    for name, value in (
        ("x-request-id", "0" * 32),
        ("x-request-id", "../../a"),
        ("host", "evil"),
        ("x-forwarded-for", "127.0.0.1"),
        ("authorization", "Bearer ' OR 1=1 --"),
        ("x-data-parallel-rank", "99999999"),
        ("traceparent", "00-zz-zz-00"),
    ):
        yield Shot(
            name=f"S12 {name}",
            path=COMPLETIONS,
            body=json.dumps(_completion()).encode(),
            headers={"content-type": "application/json", name: value},
        )
    for path in (
        "//v1/completions",
        "/v1/completions/",
        "/V1/completions",
        "/v1/completions%00",
        "/v1/completions;a=b",
        "/abort_requests",
        "/pause",
        "/invocations",
        "/update_weights",
        "/dumper/configure",
        "/reset_prefix_cache",
        "/v1/load_lora_adapter",
    ):
        yield Shot(
            name="S4 path",
            path=path,
            body=json.dumps(_completion()).encode(),
            statuses=REFUSED | {401, 403},
        )
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=" + "a" * 500,
        "application/json; charset=utf-7",
        "",
    ):
        yield Shot(
            name="S7 media type",
            path=COMPLETIONS,
            body=b'{"prompt":"a","max_tokens":1}',
            headers={"content-type": kind},
        )
    yield Shot(
        name="S9 gzip bomb",
        path=COMPLETIONS,
        body=b"\x1f\x8b\x08" + b"\x00" * 1000,
        headers={"content-type": "application/json", "content-encoding": "gzip"},
        statuses=REFUSED,
    )
