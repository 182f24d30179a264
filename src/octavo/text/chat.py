"""Chat messages to the one text that a model reads.

Renders the model's own template in this process, under a time and size budget. A template that a caller sends goes
to `render_worker.render_untrusted`, a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta

from octavo.core.errors import ModelError, RequestError
from octavo.text.messages import (
    ContentFormat,
    content_format_of,
    knows_developer,
    prepare,
    tells_strings_apart,
)
from octavo.text.template_env import RenderLimits, TemplateEnvironment

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
# What a template can run into with the messages of a request; all of it is the request's (or the template's) fault.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """A model's chat template, compiled. Frozen; `render` may be called from any thread.

    `source` is one template or several by name; with tools, one named `tool_use` is preferred to `default`.
    `specials` are the tokenizer's named special tokens.

    Raises:
        ModelError: the template does not compile.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        specials: Mapping[str, str] | None = None,
        *,
        limits: RenderLimits | None = None,
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if not sources:
            raise ModelError(
                "the model has no chat template.",
                code="E-TOK-03",
                fix="Give one with --chat-template, or use the completions endpoint.",
            )
        self.sources = sources
        """The templates' text, by name."""
        environment = TemplateEnvironment()
        self._compiled = {
            name: _Compiled(environment, name, text) for name, text in sources.items()
        }
        self._specials = dict(specials or {})
        self._limits = limits or RenderLimits()

    @property
    def content_format(self) -> ContentFormat:
        """Whether the template is written for plain strings or for parts."""
        return self._choose(has_tools=False).content_format

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set, such as `enable_thinking`."""
        return self._choose(has_tools=False).variables

    @property
    def shows_tools(self) -> bool:
        """Whether the model would see tools."""
        return "tools" in self._choose(has_tools=True).variables

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Encode it without adding special tokens: the template has written them.

        Raises:
            RequestError: messages the template refuses or cannot take, a part that is not text, or a limit passed.
        """
        taken = _RESERVED & set(kwargs or {})
        if taken:
            raise RequestError(
                f"chat_template_kwargs sets {sorted(taken)[0]!r}, which the request itself sets.",
                param="chat_template_kwargs",
            )
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other.",
                param="continue_final_message",
                fix="Set add_generation_prompt to false.",
            )
        compiled = self._choose(has_tools=bool(tools))
        prepared = prepare(
            messages,
            compiled.content_format,
            wraps_strings=compiled.wraps_strings,
            knows_developer=compiled.knows_developer,
        )
        final = _tag_final(prepared[-1]) if continue_final_message else ""
        variables = {
            **self._specials,
            **(kwargs or {}),
            "messages": prepared,
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = compiled.render(variables, self._limits)
        return _cut_at_tag(text, final) if continue_final_message else text

    def _choose(self, *, has_tools: bool) -> _Compiled:
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in self._compiled:
                return self._compiled[name]
        return next(iter(self._compiled.values()))


class _Compiled:
    """One template and what its syntax tree tells."""

    def __init__(self, environment: TemplateEnvironment, name: str, source: str) -> None:
        self._environment = environment
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            line = getattr(error, "lineno", "?")
            raise ModelError(
                f"the chat template {name!r} does not compile, line {line}: {error}.",
                code="E-TOK-03",
                fix="Correct the template, or give another with --chat-template.",
            ) from error
        self.content_format = content_format_of(tree)
        self.wraps_strings = self.content_format == "parts" and not tells_strings_apart(tree)
        self.knows_developer = knows_developer(tree)
        self.variables = frozenset(meta.find_undeclared_variables(tree))

    def render(self, variables: dict[str, Any], limits: RenderLimits) -> str:
        try:
            return self._environment.render(self._template, variables, limits)
        except _RENDER_ERRORS as error:
            raise RequestError(
                f"the chat template refused the messages: {error or type(error).__name__}",
                code="chat_template_error",
                param="messages",
            ) from error


def _tag_final(message: dict[str, Any]) -> str:
    """Mark the end of the last message's text, which is to be continued; returns that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _CONTINUE_TAG
        return content
    if isinstance(content, list) and content:
        text: str = content[-1]["text"]
        content[-1] = {**content[-1], "text": text + _CONTINUE_TAG}
        return text
    raise RequestError(
        "continue_final_message is set, and the last message has no content to continue.",
        param="continue_final_message",
    )


def _cut_at_tag(text: str, final: str) -> str:
    at = text.rfind(_CONTINUE_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise RequestError(
            "continue_final_message is set, and the chat template leaves the last message out or changes it.",
            param="continue_final_message",
        )
    # A template that trims the message has trimmed the tag's space, and would have trimmed the message's own.
    return text[:at] if text.startswith(_CONTINUE_TAG, at) else text[:at].rstrip()
