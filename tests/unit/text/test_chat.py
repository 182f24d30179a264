"""Chat templates render as transformers renders them, whatever the messages; limits hold."""

import copy
import time
from datetime import datetime
from pathlib import Path

import jinja2
import pytest

import fakes_text
from octavo.core.errors import ModelError, RequestError
from octavo.text.chat import ChatTemplate
from octavo.text.template_env import RenderLimits, TemplateEnvironment
from octavo.text.tokenizer import Tokenizer, TokenizerFacts

FOLDER = Path(__file__).parent / "templates"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "Hi"}]
SHORT = RenderLimits(timeout_s=0.2, max_chars=100_000)

CHATS = {
    "one": HELLO,
    "system": [{"role": "system", "content": " Be <brief> & kind. "}, *HELLO],
    "turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "你好 'quoted' \"x\" \n\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello 😀"},
        {"role": "user", "content": "more"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in a <city> — täglich",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
TOOL_CHAT = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I need the tool.",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
        ],
    },
    {"role": "tool", "content": "rain"},
]


def source_of(name):
    return (FOLDER / f"{name}.jinja").read_text()


def oracle(source, messages, **options):
    from transformers import PreTrainedTokenizerFast

    backend = fakes_text.byte_level()._backend
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS)
    return tokenizer.apply_chat_template(
        copy.deepcopy(messages), chat_template=source, tokenize=False, **options
    )


def render(source, messages=HELLO, *, limits=None, add_generation_prompt=True, **options):
    template = ChatTemplate(source, SPECIALS, limits=limits)
    return template.render(messages, add_generation_prompt=add_generation_prompt, **options)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen3"])
def test_renders_as_transformers_does(name, chat, prompt):
    source = source_of(name)
    expected = oracle(source, CHATS[chat], add_generation_prompt=prompt)
    assert render(source, CHATS[chat], add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_tools_as_transformers_does(name):
    source = source_of(name)
    expected = oracle(source, TOOL_CHAT, add_generation_prompt=True, tools=TOOLS)
    assert "weather" in expected
    assert render(source, TOOL_CHAT, tools=TOOLS) == expected
    # Callers send arguments as JSON text; the template gets the object.
    sent = copy.deepcopy(TOOL_CHAT)
    sent[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Köln"}'
    before = copy.deepcopy(sent)
    assert render(source, sent, tools=TOOLS) == expected
    assert sent == before


def test_arguments_that_are_broken_json_stay_as_the_model_wrote_them():
    sent = copy.deepcopy(TOOL_CHAT)
    sent[1]["tool_calls"][0]["function"]["arguments"] = '{"city": '
    assert '"arguments": {"city": }' in render(source_of("qwen3"), sent, tools=TOOLS)


@pytest.mark.parametrize("thinking", [False, True])
def test_kwargs_reach_the_template(thinking):
    source = source_of("qwen3")
    expected = oracle(source, HELLO, add_generation_prompt=True, enable_thinking=thinking)
    assert render(source, kwargs={"enable_thinking": thinking}) == expected
    assert "enable_thinking" in ChatTemplate(source).variables
    with pytest.raises(RequestError, match="messages"):
        render(source, kwargs={"messages": []})


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "qwen3"])
def test_continue_final_message(name):
    source = source_of(name)
    for start in ("Sure, ", "Sure"):
        chat = [*HELLO, {"role": "assistant", "content": start}]
        expected = oracle(source, chat, continue_final_message=True)
        options = {"add_generation_prompt": False, "continue_final_message": True}
        assert render(source, chat, **options) == expected
    with pytest.raises(RequestError, match="exclude"):
        render(source, chat, continue_final_message=True)
    with pytest.raises(RequestError, match="leaves the last message out"):
        render("x", chat, **options)
    with pytest.raises(RequestError, match="no content"):
        render(source, [{"role": "assistant", "content": None, "thinking": "x"}], **options)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}{{ {'a': '<ü>'} | tojson(indent=2, sort_keys=True) }}",
        "{% for i in range(5) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}"
        "{% endif %}{{ i }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{% endfor %}",
        "{% set d = dict(a=1) %}{{ d.a }}{{ d | items | list }}{{ dict.fromkeys('ab', 1) }}",
        "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a * 3 %}{% endfor %}"
        "{{ ns.a }}",
        "{% macro f(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call f(1) %}b{% endcall %}",
        "  {% generation %}\n  x{% set y = 1 %}\n{% endgeneration %}\n{{ y is defined }}\n",
        "{% for k, v in messages[0].items() if v %}{{ k ~ v }}{% else %}none{% endfor %}",
        "{% for i in [[1, [2]], [3]] recursive %}{% if i is iterable %}({{ loop(i) }})"
        "{% else %}{{ i }}{% endif %}{% endfor %}",
        "{{ nothing }}{{ messages[0]['nothing'] is none }}{{ 2 ** 8 }}{{ 'ab' * 2 }}{{ [1] + [2] }}",
        "{{ '%s-%05d' % ('a', 7) }}{{ '{}'.format(3) }}{{ messages[0].content.upper() }}",
    ],
)
def test_jinja_as_transformers_has_it(source):
    assert render(source) == oracle(source, HELLO, add_generation_prompt=True)


def test_strftime_now():
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), "2026"}


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{{ i }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ [0] * 10**10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% for i in range(90000) %}{{ messages }}{% endfor %}",
        "{{ raise_exception(1 / 0) }}",
        "{% set x = namespace(_a=1) %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.x.y }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_cannot_run_away(source):
    start = time.monotonic()
    with pytest.raises(RequestError):
        render(source, limits=SHORT)
    assert time.monotonic() - start < 5


def test_the_models_refusal_is_the_callers_to_read():
    chat = [{"role": "assistant", "content": "x"}]
    with pytest.raises(RequestError, match="conversation roles must alternate") as caught:
        render(source_of("mistral"), chat)
    assert caught.value.status == 400


def test_a_template_that_does_not_compile_is_a_model_error():
    with pytest.raises(ModelError, match="line 2"):
        ChatTemplate("a\n{% for %}")
    with pytest.raises(ModelError, match="no chat template"):
        ChatTemplate({})


def test_tool_use_is_preferred_with_tools():
    sources = {"default": "plain", "tool_use": "tools"}
    assert render(sources) == "plain"
    assert render(sources, tools=TOOLS) == "tools"


@pytest.mark.parametrize("name", ["chatml", "parts"])
def test_parts_are_brought_into_the_templates_form(name):
    parts = [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]
    shown = render(source_of(name), [{"role": "user", "content": parts}])
    assert ("a\nb\nc" if name == "chatml" else "abc") in shown
    assert "Hi" in render(source_of(name))


def test_marks_beside_the_text_of_a_part_are_no_mistake():
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert render(source_of("chatml"), [{"role": "user", "content": [part]}]) == render(
        source_of("chatml")
    )


def test_a_developer_speaks_as_the_system_unless_the_template_knows_better():
    chat = [{"role": "developer", "content": "Be kind."}, *HELLO]
    as_system = [{**chat[0], "role": "system"}, *HELLO]
    for name in ("chatml", "llama3", "qwen3"):
        assert render(source_of(name), chat) == render(source_of(name), as_system)
    assert chat[0]["role"] == "developer"
    source = (
        "{% for m in messages %}{% if m.role == 'developer' %}<{{ m.role }}>{% endif %}{% endfor %}"
    )
    assert render(source, chat) == "<developer>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}", "parts"),
        ("{% for m in messages[1:] %}{% for p in m['content'] %}{% endfor %}{% endfor %}", "parts"),
        (
            "{% set ms = messages %}{% for m in ms %}{% set c = m['content'] | list %}"
            "{% for p in c %}{% endfor %}{% endfor %}",
            "parts",
        ),
        ("{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", "string"),
        ("{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}", "parts"),
    ],
)
def test_content_format(source, expected):
    assert ChatTemplate(source).content_format == expected


@pytest.mark.parametrize(
    ("messages", "names"),
    [
        ([], "messages is empty"),
        (["x"], r"messages\[0\]"),
        ([{"content": "x"}], r"messages\[0\]"),
        ([*HELLO, {"role": "user", "content": 3}], r"messages\[1\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": [{"text": "x"}]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "tool_calls"),
        ([*HELLO, {"role": "assistant"}], r"messages\[1\]\.content is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "txt": "b"}]}], "'text'"),
    ],
)
def test_malformed_messages_are_named(messages, names):
    with pytest.raises(RequestError, match=names):
        render(source_of("qwen3"), messages)


def test_the_budget_is_out_of_a_templates_reach():
    environment = TemplateEnvironment()
    with pytest.raises(jinja2.TemplateSyntaxError):
        environment.from_string("{% set ' budget' = 1 %}")
    names = {" budget": 1}
    assert render("{{ budget }}{{ self }}", kwargs=names).startswith("<Temp")


def test_special_tokens_of_the_tokenizer_are_the_templates():
    facts = TokenizerFacts(
        specials={"bos_token": "<|im_start|>"}, templates={"default": "{{bos_token}}"}
    )
    tokenizer = Tokenizer(fakes_text.byte_level()._backend, facts)
    template = ChatTemplate(tokenizer.chat_templates, tokenizer.special_tokens)
    assert template.render(HELLO, add_generation_prompt=True) == "<|im_start|>"
