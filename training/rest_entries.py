"""Read what the Python documentation says about each name out of its reST sources.

A small reader for the directives these files use, not a reST parser.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_DIRECTIVE = re.compile(
    r"^(?P<indent> *)\.\. (?P<kind>function|class|method|classmethod|staticmethod|attribute|data"
    r"|exception|decorator|decoratormethod|coroutinefunction|coroutinemethod|c:function)::"
    r" (?P<rest>.*)$"
)
_MODULE = re.compile(r"^\.\. (?:module|currentmodule):: ([\w.]+)")
_ROLE = re.compile(r":(?P<role>[\w:]+):`(?P<body>[^`]*)`")
_TITLED = re.compile(r"^(.*?)\s*<[^>]*>$", re.DOTALL)
_CALLABLE = {"function", "class", "method", "classmethod", "staticmethod"}
_MAX_SUMMARY = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One documented name. `signature` and `example` are empty where the text has none."""

    name: str
    module: str
    signature: str
    summary: str
    example: str


def plain(text: str) -> str:
    """reST inline marks as light Markdown: roles and literals become backticks."""

    def role(match: re.Match[str]) -> str:
        body = match["body"].lstrip("~!.")
        if match["role"] in ("pep", "rfc"):
            return f"{match['role'].upper()} {body}"
        titled = _TITLED.match(body)
        return titled[1] if titled else f"`{body}`"

    text = _ROLE.sub(role, text)
    text = text.replace("``", "`")
    text = re.sub(r"`([^`<]+?)\s*<[^`>]+>`_+", r"\1", text)
    text = re.sub(r"(?<![*\w])\*([\w.]+)\*(?![*\w])", r"`\1`", text)
    text = re.sub(r"\|([\w-]+)\|", r"\1", text)
    return re.sub(r"\\(.)", r"\1", text)


def paragraphs(body: str) -> list[str]:
    """Dedented running text up to the first directive; literal blocks and lists end it."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n", textwrap.dedent(body).strip("\n")):
        is_markup = block.startswith((".. ", "* ", "- ", ">>>", "+-", "==", "   ", "#.", ":"))
        if block.startswith(".. ") and not found:
            continue
        if is_markup and not block.startswith((":mod", ":func", ":class", ":meth")):
            break
        found.append(re.sub(r"\s+", " ", plain(block)).strip())
        if block.rstrip().endswith("::"):
            break
    return [re.sub(r"\s*::$", ":", p) for p in found if p and p != "::"]


def summary_of(body: str) -> str:
    """The first paragraph, and the second where both are short."""
    found = [p for p in paragraphs(body)[:2] if not p.endswith(":")]
    if not found:
        return ""
    text = "\n\n".join(found)
    return text if len(text) <= _MAX_SUMMARY else found[0][: _MAX_SUMMARY * 2]


def example_of(body: str) -> str:
    """The first interactive example of a body, whole lines only."""
    lines: list[str] = []
    for line in textwrap.dedent(body).splitlines():
        if line.lstrip().startswith(">>>") or lines:
            if not line.strip():
                break
            lines.append(line)
    text = textwrap.dedent("\n".join(lines)).strip()
    text = re.sub(r"\s*# doctest:.*", "", text)
    return text if text.startswith(">>>") and len(text) < 500 else ""


def _body_after(lines: list[str], start: int, indent: int) -> str:
    """Lines indented deeper than `indent`, up to the next documented name."""
    body: list[str] = []
    for line in lines[start:]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and (depth <= indent or _DIRECTIVE.match(line)):
            break
        body.append(line)
    while body and body[0].strip().startswith(":"):
        body.pop(0)
    return "\n".join(body)


def entries(file_name: str, text: str) -> Iterator[Entry]:
    """Every documented Python name of one file, with methods qualified by their class."""
    module, owner, owner_indent = "", "", -1
    lines = re.sub(r"\\\n\s+", "", text).split("\n")
    for number, line in enumerate(lines):
        if found := _MODULE.match(line):
            module, owner, owner_indent = found[1], "", -1
        match = _DIRECTIVE.match(line)
        if match is None or match["kind"] == "c:function":
            continue
        indent, call = len(match["indent"]), match["rest"].strip()
        name = re.sub(r"\(.*", "", call).strip().split(" ")[-1]
        if indent > owner_indent >= 0 and owner and not name.startswith(f"{owner}."):
            name = f"{owner}.{name}"
        if match["kind"] in ("class", "exception"):
            owner, owner_indent = name, indent
        elif indent <= owner_indent:
            owner, owner_indent = "", -1
        in_module = bool(module) and module != "builtins" and "library/functions" not in file_name
        in_module = in_module and "library/stdtypes" not in file_name
        full = f"{module}.{name}" if in_module and not name.startswith(f"{module}.") else name
        body = _body_after(lines, number + 1, indent)
        has_call = match["kind"] in _CALLABLE and "(" in call
        arguments = call[call.index("(") :] if has_call else ""
        yield Entry(
            name=full,
            module=module if in_module and match["kind"] in ("function", "class") else "",
            signature=f"{full}{plain(arguments)}" if has_call else "",
            summary=summary_of(body),
            example=example_of(body),
        )


def modules(text: str) -> Iterator[tuple[str, str]]:
    """(module, its synopsis and first paragraph) of one library file."""
    found = re.search(r"^\.\. module:: ([\w.]+)\n(?:   :synopsis: (.*)\n)?", text, re.MULTILINE)
    if not found:
        return
    rest = re.split(r"^-{5,}\s*$", text, maxsplit=2, flags=re.MULTILINE)
    first = next((p for p in paragraphs(rest[-1]) if len(p) > 40), "")
    synopsis = plain(found[2] or "").rstrip(".")
    answer = f"{synopsis}. {first}" if synopsis and first else first or f"{synopsis}."
    if len(answer) > 20:
        yield found[1], answer


def glossary(text: str) -> Iterator[tuple[str, str]]:
    """(term, definition) of the glossary."""
    for match in re.finditer(r"^   (\S.*)\n((?:(?:      .*)?\n)+)", text, re.MULTILINE):
        definition = paragraphs(match[2])
        if definition and not match[1].startswith((":", "..")):
            yield plain(match[1]).strip("`"), definition[0]


def questions(text: str) -> Iterator[tuple[str, str]]:
    """(question, first paragraphs of the answer) of an FAQ file."""
    for match in re.finditer(r"^(\S.*\?)\n[-=~]{4,}\n\n((?:.*\n)*?)(?=^\S.*\n[-=~]{4,}$)", text,
                             re.MULTILINE):  # fmt: skip
        answer = "\n\n".join(paragraphs(match[2])[:3])
        if answer:
            yield plain(match[1]), answer
