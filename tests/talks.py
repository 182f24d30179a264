"""A server whose model says what a test wants, with tools and reasoning."""

from __future__ import annotations

from typing import Any

from fakes import FakeEngine, byte_tokenizer, make_state
from octavo.core.request import Request
from octavo.core.structured import StructuredOutputs
from octavo.engine.frontend import Frontend
from octavo.server.state import AppState
from octavo.text.parsers.output import Formats
from octavo.text.parsers.registry import REASONING, TOOL_CALLS

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.reasoning_content %}(thought {{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %}(call {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}"
    "{% if m.tool_call_id %}(to {{ m.tool_call_id }}){% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is true %}<think>\n{% endif %}"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": WEATHER}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
USER = {"role": "user", "content": "hi"}


class Unchecked:
    """Compiles nothing."""

    async def compile(self, wanted: StructuredOutputs) -> None:
        assert wanted.constraint

    def close(self) -> None:
        pass


class Trusting(Frontend):
    """Passes a constraint on to an engine that would not know a compiled one. Grammars are compiled in the tests of
    formats and of the real engine."""

    async def with_grammar(self, request: Request) -> Request:
        return request


def talking(
    text: str = "", *, tools: str | None = "hermes", thinks: str | None = "qwen3", **options: Any
) -> tuple[FakeEngine, AppState]:
    """An engine that says `text` and then ends, and the state of a server over it."""
    engine = FakeEngine(options.pop("chunks", (3,)))
    engine.script = list(text.encode())
    formats = Formats(
        REASONING.load(thinks) if thinks else None, TOOL_CALLS.load(tools) if tools else None
    )
    options.setdefault("template", TEMPLATE)
    state = make_state(engine, formats=formats, **options)
    state.frontend = Trusting(engine, state.frontend.tokenizer)
    state.frontend.grammars = Unchecked()  # type: ignore[assignment]  # as much of it as is used
    return engine, state


def prompt_of(engine: FakeEngine) -> str:
    """What the last request asked, as text."""
    ids = engine.submitted[-1].token_ids
    return byte_tokenizer().decode(ids, skip_special_tokens=False)
