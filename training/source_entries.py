"""Read public functions, their docstrings and short bodies out of Python source text."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_CODE_LINES = 24
_MAX_DOCSTRING = 700


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function or class. `code` is empty where the body is long or it is a class."""

    name: str
    docstring: str
    code: str


def module_name(file_name: str) -> str:
    """`lib/os/path.py` -> `os.path`."""
    name = file_name.removeprefix("lib/").removesuffix(".py").removesuffix("/__init__")
    return name.replace("/", ".")


def _code_of(node: ast.AST, lines: list[str]) -> str:
    """The source of a short function without its docstring's cost: whole, or nothing."""
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert node.end_lineno is not None
    if node.end_lineno - node.lineno >= _MAX_CODE_LINES or node.decorator_list:
        return ""
    return textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


def _walk(body: list[ast.stmt], prefix: str, lines: list[str]) -> Iterator[Function]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        docstring = (ast.get_docstring(node) or "").strip()
        is_class = isinstance(node, ast.ClassDef)
        if 20 < len(docstring) < _MAX_DOCSTRING:
            code = "" if is_class else _code_of(node, lines)
            yield Function(name=name, docstring=docstring, code=code)
        if is_class:
            yield from _walk(node.body, name, lines)


def functions(library: dict[str, str]) -> Iterator[Function]:
    """Every documented public function and class of the given files."""
    for file_name, text in library.items():
        if "/_" in file_name.replace("/__init__", ""):
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        yield from _walk(tree.body, module_name(file_name), text.splitlines())
