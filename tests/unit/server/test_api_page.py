"""docs/api.md: every endpoint by field, honoured or refused, and which tests show it. Run as a script to write it again.

A field counts as shown by a test whose own code names it; fields without one fail here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from octavo.server.contract import CONTRACTS
from octavo.server.unsupported import NEUTRAL

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "docs" / "api.md"
FOLDERS = ("unit/server", "unit/tools", "e2e")
REFUSALS = "test_hostile"
EVERYWHERE = ("test_caps", "test_api_page", "test_routes", "test_isolation")
"""Name fields without showing what they do."""
MOST_SHOWN = 2
FREE = {"user", "safety_identifier", "prompt_cache_key", "metadata"}
"""Change nothing by definition, which `test_hostile` shows."""


@cache
def mentions() -> dict[str, list[str]]:
    """Field -> tests that name it, as file::test, or file alone where a table or a strategy does."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((TESTS / folder).glob("test_*.py")):
            if path.stem in EVERYWHERE:
                continue
            for node in ast.parse(path.read_text()).body:
                is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
                name = f"{path.stem}::{node.name}" if is_test else path.stem  # type: ignore[attr-defined]
                for field in _strings(node):
                    if name not in found[field]:
                        found[field].append(name)
    return found


def _strings(node: ast.AST) -> set[str]:
    constants = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
    keywords = {one.arg for one in ast.walk(node) if isinstance(one, ast.keyword)}
    return {one for one in constants | keywords if isinstance(one, str)}


def shown_by(field: str, *, is_honoured: bool) -> list[str]:
    """The tests of a field, functions of the server's own tests first."""
    tests = mentions().get(field, [])
    wanted = [one for one in tests if (REFUSALS not in one) == is_honoured or field in FREE]
    return sorted(wanted, key=lambda one: ("::" not in one, wanted.index(one)))


def page() -> str:
    """docs/api.md."""
    lines = [
        "# What each endpoint does with each field",
        "",
        "Made from the request types and `server/unsupported.py` by `tests/unit/server/test_api_page.py`. A field that is",
        "not in a table is refused with the nearest known name. `/openapi.json` has the types, [limits](limits.md) the bounds.",
        "With `--lenient`, what is refused here by name is ignored and named in the answer's `warnings`.",
        "",
    ]
    for (method, path), contract in CONTRACTS.items():
        if contract.body is None:
            continue
        lines += [f"## {method} {path}", "", "| field | | tests |", "|---|---|---|"]
        for field in contract.body.__struct_fields__:
            tests = ", ".join(f"`{one}`" for one in shown_by(field, is_honoured=True)[:MOST_SHOWN])
            lines.append(f"| `{field}` | honoured | {tests} |")
        for field, neutral in sorted(NEUTRAL[contract.body.__name__].items()):
            taken = ", ".join(f"`{value}`" for value in neutral)
            tests = ", ".join(f"`{one}`" for one in shown_by(field, is_honoured=False)[:MOST_SHOWN])
            lines.append(f"| `{field}` | refused{f', except {taken}' if taken else ''} | {tests} |")
        lines.append("")
    return "\n".join(lines)


def test_page() -> None:
    assert PAGE.read_text() == page(), f"run `python {__file__}` if this was meant"


@pytest.mark.parametrize(
    "key", [key for key, one in CONTRACTS.items() if one.body is not None], ids=lambda key: key[1]
)
def test_every_field_has_a_test(key: tuple[str, str]) -> None:
    body = CONTRACTS[key].body
    assert body is not None
    unshown = [one for one in body.__struct_fields__ if not shown_by(one, is_honoured=True)]
    unrefused = [one for one in NEUTRAL[body.__name__] if not shown_by(one, is_honoured=False)]
    assert (unshown, unrefused) == ([], [])


if __name__ == "__main__":
    PAGE.write_text(page())
