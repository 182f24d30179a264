"""Whether, wherever a schema allows a string, it is clear which of its strings that is, and whether characters count there
or are looked at. Where all is clear, a mask within a string of bounded length can be put together (`bounded.py`).

Knows JSON; does not know grammars. Says no whenever it is in doubt, which costs time and changes no mask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from octavo.decoding.grammar.json_schema import ENFORCED, subschemas

STRANGE = "\ue000"
"""A character for private use, which stands for all that a string without a pattern takes as they are."""
MAX_TESTS = 32
"""Patterns and formats looked into; each takes the library about a millisecond."""
_MAX_HOPS = 8
_OF_STRINGS = frozenset(("type", "pattern", "format", "minLength", "maxLength"))
_DEFINITIONS = frozenset(("$defs", "definitions"))
_KINDS = frozenset(("string", "object", "array"))
_KIND_OF: dict[type, str] = {str: "string", dict: "object", list: "array"}


def are_told_apart(schema: Any, takes_strange: Callable[[Any], bool]) -> bool:
    """Whether one string at most can be meant at any place of a document, and every one with a pattern, a format or listed
    values refuses `STRANGE` wherever it might stand in it.

    `takes_strange` says of a schema of strings whether any of them holds `STRANGE`, or that it cannot say.
    """
    if STRANGE in json.dumps(schema, ensure_ascii=False):
        return False
    parts = [part for _, part in subschemas(schema) if isinstance(part, dict)]
    within = {id(each) for part in parts for each in part.get("allOf", ())}
    tests: dict[str, Any] = {}
    for part in parts:
        if id(part) in within:
            continue  # looked at with what it is a part of
        if not (_is_alone(part) and _is_narrow(part) and _are_branches_apart(part, schema)):
            return False
        for test in _tests_of(part):
            tests[json.dumps(test)] = test
    return len(tests) <= MAX_TESTS and not any(takes_strange(test) for test in tests.values())


def _is_alone(part: dict[str, Any]) -> bool:
    """References and unions say all that is said at their place: nothing has to be merged."""
    said = ENFORCED.intersection(part) - _DEFINITIONS
    return len(said) <= 1 or said.isdisjoint(("$ref", "anyOf", "oneOf"))


def _is_narrow(part: dict[str, Any]) -> bool:
    """Where keywords do meet, they are of strings; names with a pattern have one, and are no others' names."""
    if any(not _is_of_strings(each) for each in part.get("allOf", ())):
        return False
    patterns = part.get("patternProperties", {})
    return not patterns or (len(patterns) == 1 and not part.get("properties"))


def _is_of_strings(each: Any) -> bool:
    return isinstance(each, dict) and _OF_STRINGS.issuperset(ENFORCED.intersection(each))


def _tests_of(part: dict[str, Any]) -> list[Any]:
    """Strings whose characters matter, and names as such."""
    found = [{"type": "string", "pattern": name} for name in part.get("patternProperties", ())]
    if not part.keys().isdisjoint(("pattern", "format", "allOf")):
        found.append({k: v for k, v in part.items() if k in _OF_STRINGS or k == "allOf"})
    return found


def _are_branches_apart(part: dict[str, Any], root: Any) -> bool:
    for name in ("anyOf", "oneOf"):
        branches = [_resolved(branch, root) for branch in part.get(name, ())]
        kinds = [_kinds(branch) for branch in branches]
        if any(sum(kind in each for each in kinds) > 1 for kind in ("string", "array")):
            return False
        objects = [branch for branch, each in zip(branches, kinds, strict=True) if "object" in each]
        if len(objects) > 1 and not _begin_apart(objects):
            return False
    return True


def _resolved(branch: Any, root: Any) -> Any:
    """What a branch that is a reference within the document refers to; itself where that is not plain to see."""
    found = branch
    for _ in range(_MAX_HOPS):
        if not isinstance(found, dict) or "$ref" not in found:
            return found
        start, *names = str(found["$ref"]).split("/")
        found = root
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        if start != "#" or not isinstance(found, dict):
            return branch
    return branch


def _kinds(branch: Any) -> frozenset[str]:
    """What a branch may be, among strings and what can hold them."""
    if not isinstance(branch, dict):
        return frozenset() if branch is False else _KINDS
    if "type" in branch:
        types = branch["type"]
        return _KINDS.intersection([types] if isinstance(types, str) else types)
    if "const" in branch or isinstance(branch.get("enum"), list):
        values = [branch["const"]] if "const" in branch else branch["enum"]
        return frozenset(_KIND_OF[type(value)] for value in values if type(value) in _KIND_OF)
    return _KINDS


def _begin_apart(objects: Sequence[dict[str, Any]]) -> bool:
    """Whether each must begin with the same name and a text of its own."""
    names, texts = set(), set()
    for branch in objects:
        properties = branch.get("properties")
        if branch.get("type") != "object" or not isinstance(properties, dict) or not properties:
            return False
        name, value = next(iter(properties.items()))
        text = value.get("const") if isinstance(value, dict) else None
        if not isinstance(text, str) or name not in branch.get("required", ()):
            return False
        names.add(name)
        texts.add(text)
    return len(names) == 1 and len(texts) == len(objects)
