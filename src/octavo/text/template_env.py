"""The Jinja environment of chat templates: sandboxed, with the helpers that templates expect, under a budget.

The helpers are those of transformers (`utils/chat_template_utils.py`, `_cached_compile_jinja_template`), so a template
renders to the same text. Every loop and every call looks at the clock, and the operators that make big things out of
small ones look at sizes. What gets past that (a filter asked for a gigabyte) is stopped by `render_worker.py`, which is
for templates that come from outside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from octavo.core.errors import RequestError

_MAX_INT_BITS = 4096
# A name no template can write, so that only the environment reaches the budget.
_BUDGET_KEY = " budget"
_LOOP_FILTER = " within_budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderLimits:
    """What one rendering may use."""

    timeout_s: float = 2.0
    max_chars: int = 16 << 20


class Budget:
    """The limits of one rendering, running."""

    def __init__(self, limits: RenderLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.timeout_s

    def check_time(self) -> None:
        """Raises RequestError when the time is over."""
        if time.monotonic() > self._deadline:
            raise RequestError(
                f"rendering the chat template took longer than {self._limits.timeout_s:g} s.",
                code="chat_template_limit",
                fix="Send fewer or shorter messages, or a simpler template.",
            )

    def check_size(self, size: int, what: str) -> None:
        """Raises RequestError when something has become too long."""
        if size > self._limits.max_chars:
            raise RequestError(
                f"rendering the chat template made {what} longer than {self._limits.max_chars}"
                " characters or items.",
                code="chat_template_limit",
                fix="Send fewer or shorter messages, or a simpler template.",
            )

    def within(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, looking at the clock at each."""
        for item in items:
            self.check_time()
            yield item


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates. Frozen after construction; shared by all threads."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        self.filters[_LOOP_FILTER] = _within_budget
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def render(
        self, template: jinja2.Template, variables: dict[str, Any], limits: RenderLimits
    ) -> str:
        """The text of a template compiled here.

        Raises:
            RequestError: it took too long or grew too long; jinja's own errors pass.
        """
        budget = Budget(limits)
        parts: list[str] = []
        size = 0
        for part in template.generate({**variables, _BUDGET_KEY: budget}):
            budget.check_time()
            size += len(part)
            budget.check_size(size, "a prompt")
            parts.append(part)
        return "".join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(
                loop.iter, _LOOP_FILTER, [], [], None, None, lineno=loop.lineno
            )
        return tree

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call that a template makes, macros among them (they may recurse without a loop)."""
        _budget_of(context).check_time()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The intercepted operators, refused where the result would be huge."""
        budget = _budget_of(context)
        if operator == "**":
            _check_power(left, right)
        if operator == "*":
            budget.check_size(_product_size(left, right), "a value")
        result = super().call_binop(context, operator, left, right)
        if operator == "+" and isinstance(result, str | list | tuple):
            budget.check_size(len(result), "a value")
        return result


def _budget_of(context: Context) -> Budget:
    budget = context.parent.get(_BUDGET_KEY)
    # Constant expressions are folded while compiling, without a rendering to belong to.
    return budget if isinstance(budget, Budget) else Budget(RenderLimits())


@jinja2.pass_context
def _within_budget(context: Context, items: Iterable[Any]) -> Iterable[Any]:
    return _budget_of(context).within(items)


def _check_power(base: Any, exponent: Any) -> None:
    if not isinstance(base, int) or not isinstance(exponent, int):
        return
    if base.bit_length() * max(exponent, 0) > _MAX_INT_BITS:
        raise OverflowError(f"{base} ** {exponent} is too large")


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INT_BITS:
            raise OverflowError("the product of two integers is too large")
        return 0
    for series, count in ((left, right), (right, left)):
        if isinstance(series, str | list | tuple) and isinstance(count, int):
            return len(series) * max(count, 0)
    return 0


class _GenerationTag(Extension):
    """`{% generation %}`: marks what a trainer learns from; here its body alone matters."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


class _Dict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace` that takes no underscored names, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805  # `self` may be a keyword here
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")
