"""Every code of an error stands once in the table of docs/errors.md, and what the docs name exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"\bE-[A-Z]+-\d\d\b")
PAGE = ROOT / "docs" / "errors.md"


def codes_in(*folders: str, suffixes: tuple[str, ...]) -> set[str]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text() for path in paths if path.suffix in suffixes]
    return {code for text in texts for code in CODE.findall(text)}


def test_every_code_of_the_source_has_a_row() -> None:
    rows = re.findall(r"^\| (E-\S+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    listed = [code for code, _, _ in rows]
    assert listed == sorted(set(listed)), "once each, in order"
    assert set(listed) == codes_in("src/octavo", suffixes=(".py", ".js"))
    assert all(len(cause) > 10 and len(fix) > 5 for _, cause, fix in rows)


def test_codes_that_docs_name_exist() -> None:
    known = codes_in("src/octavo", suffixes=(".py", ".js"))
    named = codes_in("docs", "deploy", "changelog.d", suffixes=(".md", ".yaml", ".yml", ".json"))
    named |= {code for page in ROOT.glob("*.md") for code in CODE.findall(page.read_text())}
    assert named <= known
