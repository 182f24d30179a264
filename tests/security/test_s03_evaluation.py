"""S3, evaluation: no source runs text as code, and what a model writes as a call comes out as JSON or as text."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from house.sources import dotted, package_sources
from octavo.text.parsers.base import Tool
from octavo.text.parsers.output import Formats, OutputParser
from octavo.text.parsers.registry import REASONING, TOOL_CALLS
from transcripts import fold

RUNS_TEXT = {"eval", "exec", "compile", "__import__", "ast.literal_eval", "literal_eval", "builtins.eval",
             "builtins.exec", "builtins.compile", "code.interact", "runpy.run_path", "os.system", "os.popen"}  # fmt: skip
HOSTILE = (
    "__import__('os').system('id')",
    "open('/etc/passwd').read()",
    "().__class__.__bases__[0].__subclasses__()",
    "exec('x=1')",
    "[x for x in ().__class__.__base__.__subclasses__()]",
    "lambda: 1",
    "f'{1+1}'",
    "9**9**9**9",
    "'a' * 10**9",
    "{}.__class__",
    "1 if True else 2",
    "b'x' + b'y'",
    "\\N{BULLET}",
    "(" * 1500,
    "[" * 1500,
    "-" * 1500 + "1",
    "{'a':" * 1500,
    "9" * 6000,
    "1e999999",
    "\ud800",
)
EVENTS = ("exec", "compile", "os.system", "subprocess.Popen", "open", "import", "socket.connect")


def test_no_source_runs_text_as_code() -> None:
    found = [
        f"{source.name}:{node.lineno}: {dotted(node.func)}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and dotted(node.func) in RUNS_TEXT
    ]
    assert not found


_seen: list[str] = []
_watches = [False]


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watches[0] and event in EVENTS:
        _seen.append(f"{event} {args[:1]!r}"[:200])


sys.addaudithook(_hook)  # it cannot be taken away again; it is asleep but for the test below


@contextmanager
def watched() -> Iterator[list[str]]:
    _seen.clear()
    _watches[0] = True
    try:
        yield _seen
    finally:
        _watches[0] = False


def outputs(value: str) -> Iterator[str]:
    """Calls in every family's way of writing, with `value` where an argument stands."""
    quoted = json.dumps(value)
    call = f'{{"name": "f", "arguments": {{"a": {value}}}}}'
    yield from (
        f"<tool_call>\n{call}\n</tool_call>",
        f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>",
        f"[f(a={value})]",
        f"f(a={value})",
        f"[f(a=[{value}], b={{'c': {value}}})]",
        f"<|python_tag|>{call}",
        f'{{"name": "f", "parameters": {{"a": {value}}}}}',
        f"[TOOL_CALLS][{call}]",
        f'[TOOL_CALLS]f[ARGS]{{"a": {value}}}',
        f"<|tool_call|>[{call}]",
        f'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{{"a": {value}}}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        f'<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"a": {value}}}<|call|>',
        f'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{{"a": {value}}}<｜tool▁call▁end｜>',
        f"<tool_call>{value}</tool_call>",
        f"[{value}]",
        f"{value}(a={quoted})",
    )


@pytest.mark.parametrize("name", sorted(TOOL_CALLS))
def test_only_json_comes_out_of_a_call(name: str) -> None:
    tools = {"f": Tool("f", {"type": "object", "properties": {"a": {"type": "object"}, "b": {}}})}
    reasoning = REASONING.load("openai_gptoss") if name == "openai" else None
    formats = Formats(reasoning, TOOL_CALLS.load(name))
    for text in outputs("1"):  # what is imported late is imported now
        warm = OutputParser(formats, tools)
        warm.push(text)
        warm.finish()
    num_calls = 0
    for value in ("1", '"x"', *HOSTILE):
        for text in outputs(value):
            for size in (len(text), 61):
                parser = OutputParser(formats, tools)
                with watched() as seen:
                    pieces = [
                        piece
                        for i in range(0, len(text), size)
                        for piece in parser.push(text[i : i + size])
                    ]
                    pieces += parser.finish()
                assert not seen, text[:200]
                answer = fold(pieces)
                num_calls += len(answer.calls)
                if not answer.flaws and answer.is_whole:
                    assert all(isinstance(json.loads(args), dict) for _, args in answer.calls)
    assert num_calls, "some of it is read as calls"
