"""What shape a caller may demand of the output: one constraint, as text, with its size bounded here.

A `StructuredOutputs` that exists names exactly one constraint. Whether a schema, regex or grammar means anything is
found out where it is compiled, under a budget; this module knows no grammar.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from octavo.core.errors import RequestError

# Caps in characters. What a small text can blow up to is the compiler's budget to catch.
MAX_SCHEMA_CHARS = 1 << 18
MAX_REGEX_CHARS = 1 << 15
MAX_GRAMMAR_CHARS = 1 << 18
MAX_CHOICES = 4096
MAX_CHOICE_CHARS = 4096
MAX_CHOICES_CHARS = 1 << 18
MAX_WHITESPACE_CHARS = 256

_TEXTS = {
    "json": MAX_SCHEMA_CHARS,
    "regex": MAX_REGEX_CHARS,
    "grammar": MAX_GRAMMAR_CHARS,
    "structural_tag": MAX_SCHEMA_CHARS,
    "whitespace_pattern": MAX_WHITESPACE_CHARS,
}
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Fields of which exactly one is set."""
_JSON_OPTIONS = {
    "disable_any_whitespace": ("json", "json_object", "structural_tag"),
    "whitespace_pattern": ("json", "json_object", "structural_tag"),
    "disable_additional_properties": ("json", "structural_tag"),
}
"""Options, and the constraints that they mean something to."""


class StructuredOutputs(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One constraint on the output, and how JSON is to be written.

    Raises:
        RequestError: none or several constraints, one too long, or an option that does not go with it; `param` names
            the field.
    """

    json: str | None = None
    """A JSON schema, as JSON text."""
    regex: str | None = None
    """The whole output matches it."""
    choice: tuple[str, ...] | None = None
    """The output is one of these."""
    grammar: str | None = None
    """Lark; `%json {...}` embeds a schema. EBNF as in GBNF (`root ::= ...`) is taken, too."""
    json_object: bool = False
    """Any JSON object."""
    structural_tag: str | None = None
    """Free text with constrained spans, as JSON text."""
    disable_any_whitespace: bool = False
    """JSON without whitespace between its tokens."""
    disable_additional_properties: bool = False
    """Schemas that do not say otherwise allow no properties beside those they name."""
    whitespace_pattern: str | None = None
    """A regex for what may stand between the tokens of JSON."""

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                _refuse(name, getattr(self, name), "true or false")
        for name, most in _TEXTS.items():
            _check_text(name, getattr(self, name), most)
        if self.choice is not None:
            _check_choices(self.choice)
        given = [name for name in CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            shown = ", ".join(given) or "none of them"
            raise RequestError(
                f"structured_outputs sets {shown}; expected exactly one of {', '.join(CONSTRAINTS)}.",
                param="structured_outputs",
            )
        for name, fitting in _JSON_OPTIONS.items():
            if getattr(self, name) and given[0] not in fitting:
                _refuse(
                    name, getattr(self, name), f"only beside {', '.join(fitting)}, not {given[0]}"
                )
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            _refuse("whitespace_pattern", self.whitespace_pattern, "no disable_any_whitespace")

    @property
    def constraint(self) -> str:
        """The name of the field that is set."""
        return next(name for name in CONSTRAINTS if getattr(self, name) not in (None, False))


def _check_text(name: str, value: object, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value:
        _refuse(name, value, "a non-empty string")
    if len(value) > most:
        _refuse(name, f"a text of {len(value)} characters", f"at most {most} characters")


def _check_choices(values: object) -> None:
    if not isinstance(values, tuple | list) or not values:
        _refuse("choice", values, "a non-empty list of strings")
    if len(values) > MAX_CHOICES:
        _refuse("choice", f"a list of {len(values)}", f"at most {MAX_CHOICES} strings")
    total = 0
    for value in values:
        if not isinstance(value, str) or not value or len(value) > MAX_CHOICE_CHARS:
            _refuse("choice", value, f"non-empty strings of at most {MAX_CHOICE_CHARS} characters")
        total += len(value)
    if total > MAX_CHOICES_CHARS:
        _refuse("choice", f"{total} characters", f"at most {MAX_CHOICES_CHARS} in all")


def _refuse(name: str, given: object, expected: str) -> NoReturn:
    shown = repr(given)
    shown = shown if len(shown) <= 64 else f"{shown[:61]}..."
    where = f"structured_outputs.{name}"
    raise RequestError(f"{where} is {shown}; expected {expected}.", param=where)
