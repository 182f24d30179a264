"""Outputs as models write them, format by format, and what each of them says."""

from __future__ import annotations

from typing import Any, NamedTuple

from octavo.text.parsers.base import Piece, Tool
from octavo.text.parsers.output import Formats, OutputParser
from octavo.text.parsers.registry import REASONING, TOOL_CALLS

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["c", "f"]},
        "where": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    },
    "required": ["city"],
}
TOOLS = {"get_weather": Tool("get_weather", WEATHER), "now": Tool("now", {})}

Call = tuple[str, str]


class Answer(NamedTuple):
    """What a caller makes of the pieces."""

    content: str
    reasoning: str
    calls: tuple[Call, ...]
    flaws: tuple[str, ...]
    is_whole: bool
    """Whether every call that began has ended."""


class Transcript(NamedTuple):
    """One output and what it says."""

    tools: str
    text: str
    content: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    thinks: str | None = None


OSLO = '{"city": "Oslo"}'
TWO = (("get_weather", OSLO), ("now", "{}"))
ODD = '{"city": "a \\"b\\" </tool_call> {[( é 日本", "where": {"x": [1, {}]}}'

TRANSCRIPTS = [
    Transcript(
        "hermes",
        'I look it up.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "I look it up.",
        TWO,
    ),
    Transcript(
        "hermes",
        f'<think>\nWhich <tool_call>?\n</think>\n\n<tool_call>\n{{"name": "get_weather", "arguments": {ODD}}}\n</tool_call>',
        calls=(("get_weather", ODD),),
        reasoning="Which <tool_call>?",
        thinks="qwen3",
    ),
    Transcript(
        "hermes",
        '<tool_call>{"arguments":{"city":  "Oslo"} , "name":"get_weather"}</tool_call>Done.',
        "Done.",
        (("get_weather", '{"city":  "Oslo"}'),),
    ),
    Transcript(
        "hermes",
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>',
        calls=(("get_weather", OSLO),),
    ),
    Transcript("hermes", "  No call, 2 < 3 and <tool.\n", "  No call, 2 < 3 and <tool.\n"),
    Transcript(
        "qwen3_coder",
        "Let me see.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nA\n\n  <b>\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n<parameter=where>\nnull\n</parameter>\n<parameter=unit>\nc\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "Let me see.",
        (
            ("get_weather", '{"city": "A\\n\\n  <b>", "days": 3, "where": null, "unit": "c"}'),
            ("now", "{}"),
        ),
    ),
    Transcript(
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}',
        calls=TWO,
    ),
    Transcript(
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        calls=TWO[:1],
    ),
    Transcript("llama3_json", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'),
    Transcript(
        "mistral",
        'Yes.[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "abcdef123"}, '
        '{"name": "now", "arguments": {}}]',
        "Yes.",
        TWO,
    ),
    Transcript(
        "mistral",
        '[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}',
        "Yes.",
        TWO,
        "Hm.",
        "mistral",
    ),
    Transcript(
        "granite",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "now", "arguments": {}}]',
        calls=TWO,
    ),
    Transcript(
        "granite",
        "Here is my thought process: It is 5.\n\nHere is my response: Five.",
        "Five.",
        reasoning="It is 5.",
        thinks="granite",
    ),
    Transcript(
        "deepseek_v3",
        '<think>Hm</think>So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Oslo"}\n'
        "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        "So.",
        TWO,
        "Hm",
        "deepseek_r1",
    ),
    Transcript(
        "deepseek_v31",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        calls=TWO,
    ),
    Transcript(
        "openai",
        "<|channel|>analysis<|message|> Hm.\n<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}',
        "I look.",
        TWO[:1],
        " Hm.\n",
        "openai_gptoss",
    ),
    Transcript(
        "openai",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.\n",
        "Hello.\n",
        reasoning="Hm.",
    ),
    Transcript(
        "pythonic",
        "[get_weather(city='O\\'s [lo]', days=-3, where={'x': [1, None, True, 2.5]}), now()]",
        calls=(
            (
                "get_weather",
                '{"city": "O\'s [lo]", "days": -3, "where": {"x": [1, null, true, 2.5]}}',
            ),
            ("now", "{}"),
        ),
    ),
    Transcript("pythonic", "[1, 2] is a list.", "[1, 2] is a list."),
    Transcript(
        "json", '```json\n[{"name": "get_weather", "arguments": {"city": "Oslo"}}]\n```', calls=TWO[:1]
    ),
    Transcript("json", '{"name": "now", "parameters": {}}', calls=TWO[1:]),
    Transcript("json", '{"answer": [1, 2]}', '{"answer": [1, 2]}'),
]  # fmt: skip


def parser(
    tools: str | None, thinks: str | None = None, *, is_open: bool = False, **options: Any
) -> OutputParser:
    """A parser for formats of these names."""
    formats = Formats(
        REASONING.load(thinks) if thinks else None, TOOL_CALLS.load(tools) if tools else None
    )
    return OutputParser(formats, TOOLS, is_open=is_open, **options)


def parse(made: OutputParser, parts: list[str]) -> Answer:
    """The fold of all pieces."""
    return fold([piece for part in parts for piece in made.push(part)] + made.finish())


def fold(pieces: list[Piece]) -> Answer:
    """What a caller makes of pieces; checks that calls begin and end in turn."""
    texts = {"content": "", "reasoning": ""}
    flaws: list[str] = []
    calls: list[list[str]] = []
    is_in_call = False
    for kind, text in pieces:
        if kind in texts:
            assert text and not is_in_call
            texts[kind] += text
        elif kind == "call":
            assert text and not is_in_call
            is_in_call = True
            calls.append([text, ""])
        elif kind == "arguments":
            assert text and is_in_call
            calls[-1][1] += text
        elif kind == "end":
            assert is_in_call
            is_in_call = False
        else:
            assert kind == "flaw" and text
            flaws.append(text)
    done = tuple((name, arguments) for name, arguments in calls)
    return Answer(texts["content"], texts["reasoning"], done, tuple(flaws), not is_in_call)
