"""The sources under the budgets, parsed once, and small readers of their syntax."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "octavo"

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """One Python file. `name` is its path from the root of the repository."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def docstrings(self) -> set[int]:
        """Ids of the constants that are docstrings, those of attributes among them."""
        return {
            id(node.value)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }

    def words(self) -> Iterator[tuple[int, str]]:
        """(line, text) of every identifier and string that is code: no comment, no docstring."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Constant(value=str(text)) if id(node) not in self.docstrings:
                    yield node.lineno, text
                case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text):
                    yield node.lineno, text
                case ast.keyword(arg=str(text)):
                    yield node.lineno, text
                case (
                    ast.FunctionDef(name=text)
                    | ast.AsyncFunctionDef(name=text)
                    | ast.ClassDef(name=text)
                ):
                    yield node.lineno, text

    def comment_near(self, line: int, pattern: str) -> bool:
        """Whether a comment matches on the line, or in the block of comments right above it."""
        first = line - 1
        while first > 0 and self.lines[first - 1].lstrip().startswith("#"):
            first -= 1
        return any(re.search(pattern, text) for text in self.lines[first:line])


def package_sources() -> list[Source]:
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def repository_files() -> list[Path]:
    """What belongs to the repository: as git says, or what is there when this is no git checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    if listed.returncode == 0 and listed.stdout:
        names = [name for name in listed.stdout.split("\0") if name]
        return [path for name in names if (path := ROOT / name).is_file()]
    skipped = {".venv", ".git", "build", "dist", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)
    ]


def parameters(function: Function) -> list[ast.arg]:
    """What a caller may pass."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [each for each in named if each.arg not in ("self", "cls")]


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a name or a chain of attributes; otherwise the empty string."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            base = dotted(value)
            return f"{base}.{attr}" if base else ""
    return ""
