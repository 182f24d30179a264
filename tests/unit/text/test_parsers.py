"""fold(stream) == whole, over every way of cutting recorded, generated and hostile outputs; nothing raises or is lost."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.text.parsers.output import Formats, OutputParser
from octavo.text.parsers.registry import REASONING, TOOL_CALLS
from transcripts import ODD, TRANSCRIPTS, Answer, Transcript, fold, parse, parser

MARKERS = sorted(
    {m for name in TOOL_CALLS for m in TOOL_CALLS.load(name).markers}
    | {m for name in REASONING for m in Formats(REASONING.load(name)).markers()}
)
FRAGMENTS = [
    *MARKERS, "<function=get_weather>", "<parameter=city>", "</parameter>", "</function>", "get_weather", "now",
    '{"name": "now", "arguments": ', '{"name": "get_weather", "parameters": {"city": "', '{"arguments": {}, "name": "',
    "{", "}", "[", "]", '"', "\\", "'", "(", ")", ",", ";", ":", "=", "-", "1e999", "null", "true", "12", " ", "\n", "\n\n",
    " " * 300, "```json\n", "```", "function", "analysis", "commentary to=functions.now", "final", "é", "日本", "🦊", "\ufffd",
    "[" * 200, "{" * 40, "f(x=" * 40, "[now(", "city='", "\\u00e9", "\\", "\\ud800", "<", "</", "<|",
]  # fmt: skip
FORMATS = [(tools, None) for tools in TOOL_CALLS] + [
    ("hermes", "qwen3"), ("qwen3_coder", "deepseek_r1"), ("granite", "granite"), ("mistral", "mistral"),
    ("openai", "openai_gptoss"), (None, "qwen3"), (None, "openai_gptoss"),
]  # fmt: skip
some = settings(max_examples=40, deadline=None)


def cut(text: str, places: list[int]) -> list[str]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda t: f"{t.tools}-{len(t.text)}")
def test_transcripts(transcript: Transcript) -> None:
    made = parser(transcript.tools, transcript.thinks)
    answer = parse(made, [transcript.text])
    flaws = answer.flaws if "Bob" in transcript.text or "answer" in transcript.text else ()
    flaws = answer.flaws if transcript.text.startswith("[1") else flaws
    expected = Answer(transcript.content, transcript.reasoning, transcript.calls, flaws, True)
    assert answer == expected


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda t: f"{t.tools}-{len(t.text)}")
def test_every_single_cut_and_character_by_character(transcript: Transcript) -> None:
    text = transcript.text
    whole = parse(parser(transcript.tools, transcript.thinks), [text])
    assert parse(parser(transcript.tools, transcript.thinks), list(text)) == whole
    for place in range(1, len(text)):
        parts = [text[:place], text[place:]]
        assert parse(parser(transcript.tools, transcript.thinks), parts) == whole


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda t: f"{t.tools}-{len(t.text)}")
def test_every_prefix_ends_well(transcript: Transcript) -> None:
    """An output cut off anywhere is parsed alike in one and in many parts, and its calls are ended or flagged."""
    for end in range(0, len(transcript.text), 5):
        text = transcript.text[:end]
        whole = parse(parser(transcript.tools, transcript.thinks), [text])
        assert parse(parser(transcript.tools, transcript.thinks), list(text)) == whole
        check(text, whole, transcript.thinks is not None or transcript.tools == "openai")


def check(text: str, answer: Answer, thinks: bool) -> None:
    """What holds for any output at all."""
    assert answer.is_whole
    for _, arguments in answer.calls:
        try:
            is_object = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            is_object = False
        assert is_object or answer.flaws
    if not answer.calls and not thinks:
        assert bare(answer.content) == bare(text)


@pytest.mark.parametrize(("tools", "thinks"), FORMATS)
@some
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14), data=st.data())
def test_hostile_outputs(tools, thinks, parts, data) -> None:
    text = "".join(parts)
    places = data.draw(st.lists(st.integers(0, 4000), max_size=12))
    is_open = thinks is not None and data.draw(st.booleans())
    whole = parse(parser(tools, thinks, is_open=is_open), [text])
    assert parse(parser(tools, thinks, is_open=is_open), cut(text, places)) == whole
    assert parse(parser(tools, thinks, is_open=is_open), list(text)) == whole
    is_harmony = "openai" in (tools, thinks) or thinks == "openai_gptoss"
    check(text, whole, thinks is not None or is_harmony)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda t: f"{t.tools}-{len(t.text)}")
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_damaged_transcripts(transcript: Transcript, data) -> None:
    text = transcript.text
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        drop = data.draw(st.integers(0, 6))
        text = text[:at] + data.draw(st.sampled_from(["", *FRAGMENTS])) + text[at + drop :]
    places = data.draw(st.lists(st.integers(0, 4000), max_size=8))
    whole = parse(parser(transcript.tools, transcript.thinks), [text])
    assert parse(parser(transcript.tools, transcript.thinks), cut(text, places)) == whole
    assert parse(parser(transcript.tools, transcript.thinks), list(text)) == whole
    check(text, whole, transcript.thinks is not None or transcript.tools == "openai")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(MARKERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@some
@given(
    arguments=st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
    places=st.lists(st.integers(0, 4000), max_size=9),
)
@example(arguments={"a": "</tool_call>"}, indent=None, is_ascii=True, places=[])
def test_arguments_are_byte_equal_to_what_was_written(arguments, indent, is_ascii, places) -> None:
    written = json.dumps(arguments, indent=indent, ensure_ascii=is_ascii)
    shapes = {
        "hermes": '<tool_call>{"name": "now", "arguments": %s}</tool_call>',
        "llama3_json": '{"name": "now", "parameters": %s}',
        "mistral": "[TOOL_CALLS]now[ARGS]%s",
        "granite": '<|tool_call|>[{"name": "now", "arguments": %s}]',
        "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>%s<｜tool▁call▁end｜>",
        "json": '[{"arguments": %s, "name": "now"}]',
    }
    for name, shape in shapes.items():
        answer = parse(parser(name), cut(shape % written, places))
        assert answer == Answer("", "", (("now", written),), (), True)


def test_arguments_stream_as_they_come() -> None:
    made = parser("hermes")
    made.push('<tool_call>{"name": "get_weather", "arguments": ')
    got = [made.push(part) for part in ('{"ci', 'ty": "O', "slo", '"}}</tool_call>')]
    texts = ["".join(p.text for p in pieces if p.kind == "arguments") for pieces in got]
    assert texts == ['{"ci', 'ty": "O', "slo", '"}']


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ("hermes", "<tool_call>\nnot JSON</tool_call> and more"),
        ("hermes", 'A \n<tool_call> {"name": 3, "arguments": {}}'),
        ("hermes", '<tool_call>{"nam'),
        ("mistral", "[TOOL_CALLS]!"),
        ("llama3_json", '{"name": "nobody", "parameters": {}} ...'),
        ("pythonic", '[get_weather(__import__("os").system("ls"))]'),
        ("pythonic", "[get_weather(city=f'{1}')]"),
        ("pythonic", "[get_weather(**{'city': 'x'})]"),
        ("qwen3_coder", "<tool_call>\n<function=\n"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>nothing"),
        ("openai", "<|channel|>final with no message"),
    ],
)
def test_what_does_not_parse_is_content_and_flagged(tools: str, text: str) -> None:
    answer = parse(parser(tools), list(text))
    assert answer.content == text and not answer.calls and answer.flaws


@pytest.mark.parametrize(
    "arguments", ['{"a": 1,,}', '{"a": 1', '{"a": "x', "[1]", "null", '{"a": NAN}', "{]"]
)
def test_broken_arguments_come_as_they_are_and_flagged(arguments: str) -> None:
    answer = parse(
        parser("hermes"), [f'<tool_call>{{"name": "now", "arguments": {arguments}', "</tool_call>"]
    )
    assert len(answer.calls) == 1 and answer.flaws
    assert answer.calls[0][1].startswith(arguments[:-1])


def test_reasoning_that_the_prompt_opened() -> None:
    made = parser("hermes", "qwen3", is_open=True)
    answer = parse(made, ["\nI th", "ink.\n</th", "ink>\n\nYes.\n"])
    assert (answer.reasoning, answer.content) == ("I think.", "Yes.\n")
    answer = parse(parser(None, "qwen3", is_open=True), ["never ends "])
    assert (answer.reasoning, answer.content) == ("never ends ", "")


def test_tags_anywhere_but_at_the_beginning_are_text() -> None:
    text = "The tags <think> and </think> frame it."
    assert parse(parser(None, "qwen3"), list(text)).content == text


def test_only_the_token_counts_where_a_marker_is_a_special_token() -> None:
    """Text that spells a marker, in what the model quotes say, is no marker."""
    text = 'x [TOOL_CALLS]y [TOOL_CALLS][{"name": "now", "arguments": {"a": "[TOOL_CALLS]"}}]'
    at = text.index("[TOOL", 5)
    for size in range(1, 30):
        made = parser("mistral", special_markers={7: "[TOOL_CALLS]"})
        pieces = []
        for start in range(0, len(text), size):
            part = text[start : start + size]
            marks = [(at, 7)] if start <= at < start + size else []
            pieces += made.push(part, marks=marks)
        answer = fold(pieces + made.finish())
        assert answer.content == "x [TOOL_CALLS]y"
        assert answer.calls == (("now", '{"a": "[TOOL_CALLS]"}'),)


def test_reasoning_tokens_are_those_that_begin_in_it() -> None:
    made = parser(None, "qwen3")
    tokens = ["<think>", "\n", "one", " two", "\n", "</think>", "\n\n", "three"]
    at = 0
    for token in tokens:
        made.push(token, offsets=[at])
        at += len(token)
    made.finish()
    assert made.num_reasoning_tokens == 4


@pytest.mark.parametrize("tools", sorted(TOOL_CALLS))
def test_long_outputs_take_linear_time(tools: str) -> None:
    rng = random.Random(0)
    pieces = [rng.choice(FRAGMENTS)[:20] for _ in range(4_000)]
    hostile = [
        "".join(pieces),
        " " * 20_000,
        '<tool_call>{"name": "now", "arguments": {"a": "' + "x" * 20_000,
        "[" * 20_000,
    ]
    for text in hostile:
        began = time.process_time()
        parse(parser(tools, "qwen3"), list(text))
        assert time.process_time() - began < 5.0


def test_no_text_is_lost_around_a_call_that_fails() -> None:
    text = "A  \n\n<tool_call> \n{]</tool_call>  B"
    assert parse(parser("hermes"), list(text)).content == text


def test_a_parser_without_formats_passes_text_on() -> None:
    made = OutputParser(Formats(), {})
    assert fold(made.push(" a\n ") + made.push(ODD) + made.finish()).content == " a\n " + ODD
