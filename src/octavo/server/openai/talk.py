"""A conversation with tools and reasoning: how its prompt is made, how its output is bound, and how it is read.

Chat completions, responses and messages all go through here; they differ in how they write what was read.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.core.structured import MAX_GRAMMAR_CHARS, StructuredOutputs
from octavo.engine.frontend import Delta, Generation, output_limit
from octavo.meter.metrics import Metrics
from octavo.server.call import Call
from octavo.server.openai.answer import check_body
from octavo.server.openai.output_format import check_output_format
from octavo.server.openai.prompts import chat_prompt
from octavo.server.openai.sampling import caller_of, sampling_params
from octavo.server.openai.start import begin as start
from octavo.server.openai.start import check_beams, truncated
from octavo.server.openai.tools import Asked, asked_tools
from octavo.server.schema import ChatBody
from octavo.server.state import AppState
from octavo.text.parsers.base import Demand, Piece, Tools
from octavo.text.parsers.demand import Budget, after_reasoning, grammar_of, within_budget
from octavo.text.parsers.output import Formats, OutputParser
from octavo.text.parsers.registry import TOOL_CALLS

_TAIL_TOKENS = 32
"""So many of a prompt's last tokens are looked at for a marker that opens or closes the reasoning."""
_FALLBACK = "json"
"""The format of forced calls where the model's own is not known: every model can be made to write it."""


class Opening(NamedTuple):
    """How a prompt leaves the reasoning."""

    is_open: bool = False
    is_closed: bool = False


class Talk(NamedTuple):
    """A conversation under way."""

    generation: Generation
    model: str
    reader: Reader


async def begin(
    call: Call,
    body: ChatBody,
    *,
    answer_id: str,
    asked: int | None,
    logprobs: int | None = None,
    shape: StructuredOutputs | None = None,
) -> Talk:
    """Check, render, tokenize and submit. `asked` is the limit of output tokens, None for as many as fit; `shape` is
    what the answer must be, where the caller says it elsewhere than in the body.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    state = call.state
    model = state.check_model(body.model)
    # Before anything costly: what can be refused by looking at the body alone.
    defaults = state.default_sampling
    params = sampling_params(body, defaults, logprobs=logprobs, max_tokens=asked)
    caller = caller_of(call, body)
    check_body(body, 1)
    check_beams(body)
    tools = asked_tools(body)
    formats = _formats(state, tools, body)
    ready = state.check_accepting()
    call.stay.glance(caller)
    await check_output_format(state.frontend, body, params)
    rendered = await _render(call, body, tools)
    ids, num_cut = truncated(rendered, body, asked, ready.max_model_len)
    if asked is None and "max_new_tokens" in defaults:
        room = output_limit(len(ids), None, ready.max_model_len)
        most = min(int(defaults["max_new_tokens"]), room)
        params = sampling_params(body, defaults, logprobs=logprobs, max_tokens=most)
    opening = _opening(state, formats, ids, body)
    if shape is not None:
        params = msgspec.structs.replace(params, structured_outputs=shape)
    budget = _budget(state, body, formats, opening)
    params = _bound(state, params, formats, tools, opening, budget)
    if params.structured_outputs is not None and not opening.is_closed:
        params, formats = _after_reasoning(state, params, formats, opening, budget)
    elif budget is not None:
        shape = within_budget(budget, is_open=opening.is_open)
        params = msgspec.structs.replace(params, structured_outputs=shape)
    await _compile(state, params, tools)
    special = state.frontend.tokenizer.special_ids(formats.markers())
    generation = start(
        state, ids, num_cut, body, params, caller=caller, request_id=answer_id, kept=special
    )
    call.stay.enter(caller, generation.requests, is_searched=bool(body.use_beam_search))
    reader = Reader(formats, tools, opening, special, state.metrics)
    return Talk(generation, model, reader)


async def prompt_ids(call: Call, body: ChatBody) -> list[int]:
    """The prompt of a call, which is not made. Raises RequestError."""
    tools = asked_tools(body)
    _formats(call.state, tools, body)
    call.state.check_accepting()
    return await _render(call, body, tools)


async def _render(call: Call, body: ChatBody, tools: Asked) -> list[int]:
    state = call.state
    body = _with_effort(body, state)
    return await chat_prompt(
        state.frontend, state.chat_template, body, call.refuse, tools=tools.shown
    )


class Reader:
    """Reads the deltas of all choices of a call. Owner: the form that writes its answer."""

    def __init__(
        self,
        formats: Formats,
        asked: Asked,
        opening: Opening,
        special: Mapping[int, str],
        metrics: Metrics,
    ) -> None:
        known: Tools = {tool.name: tool for tool in asked.tools}
        self._make: Callable[[], OutputParser] = lambda: OutputParser(
            formats, known, is_open=opening.is_open, special_markers=special
        )
        self._reads = formats.reasoning is not None or formats.tools is not None
        self._parsers: dict[int, OutputParser] = {}
        self._num_chars: dict[int, int] = {}
        """Of choices that nothing is looked for in: content so far."""
        self._flawed: set[int] = set()
        self._metrics = metrics
        self._new_id = formats.tools.new_id if formats.tools else None
        self.sees_reasoning = formats.reasoning is not None or (
            formats.tools is not None and formats.tools.is_whole
        )
        """Whether reasoning is looked for."""

    @property
    def num_reasoning_tokens(self) -> int:
        """Reasoning tokens so far, over all choices."""
        return sum(parser.num_reasoning_tokens for parser in self._parsers.values())

    def new_id(self) -> str:
        """An id for a tool call."""
        return self._new_id() if self._new_id else f"call_{secrets.token_hex(12)}"

    def read(self, delta: Delta) -> Sequence[Piece]:
        """What a delta says; at its last delta also what was held back of the choice."""
        if not self._reads:
            return (Piece("content", delta.text),) if delta.text else ()
        parser = self._parsers.get(delta.index)
        if parser is None:
            parser = self._parsers[delta.index] = self._make()
        pieces = parser.push(delta.text, delta.offsets, delta.marks)
        if delta.finish_reason is not None:
            pieces = [*pieces, *parser.finish()]
        if any(piece.kind == "flaw" for piece in pieces) and delta.index not in self._flawed:
            self._flawed.add(delta.index)
            self._metrics.count("octavo:tool_parse_errors")
        return pieces

    def content_spans(self, delta: Delta) -> list[tuple[int, int]]:
        """Where the content of the pieces just read stands in the choice's text, in characters."""
        if self._reads:
            return self._parsers[delta.index].content_spans()
        start = self._num_chars.get(delta.index, 0)
        end = self._num_chars[delta.index] = start + len(delta.text)
        return [(start, end)] if delta.text else []


def _formats(state: AppState, asked: Asked, body: ChatBody) -> Formats:
    """What to look for in the output of this call. Raises RequestError."""
    formats = state.formats
    if not asked.tools:
        is_whole = formats.tools is not None and formats.tools.is_whole
        return formats if is_whole else formats._replace(tools=None)
    if state.chat_template is not None and not state.chat_template.shows_tools:
        raise RequestError(
            "this model's chat template does not show tools to the model.",
            param="tools",
            code="tools_not_supported",
            fix="Start the server with a --chat-template that does.",
        )
    if asked.must_call:
        return formats if formats.tools else formats._replace(tools=TOOL_CALLS.load(_FALLBACK))
    if not state.config.enable_auto_tool_choice or formats.tools is None:
        raise RequestError(
            "this server does not know how this model writes tool calls, or is told not to look."
            if formats.tools is None
            else "this server was started with --no-enable-auto-tool-choice.",
            param="tools" if body.tool_choice is None else "tool_choice",
            code="auto_tool_choice_disabled",
            fix="Set tool_choice to none, required or a function, or start it with --tool-call-parser.",
        )
    return formats


def _with_effort(body: ChatBody, state: AppState) -> ChatBody:
    """`reasoning_effort` as the template's own variable. Raises RequestError where it has none."""
    effort = body.reasoning_effort
    if effort is None or state.chat_template is None:
        return body
    variables = state.chat_template.variables
    given = body.chat_template_kwargs or {}
    if "reasoning_effort" in variables:
        return msgspec.structs.replace(
            body, chat_template_kwargs={"reasoning_effort": effort, **given}
        )
    if effort == "none" and "enable_thinking" in variables:
        return msgspec.structs.replace(
            body, chat_template_kwargs={"enable_thinking": False, **given}
        )
    raise RequestError(
        f"reasoning_effort is {effort!r}, which this model's chat template does not read.",
        param="reasoning_effort",
        code="unsupported_field",
        fix="Leave it out.",
    )


def _opening(state: AppState, formats: Formats, ids: Sequence[int], body: ChatBody) -> Opening:
    reasoning = formats.reasoning
    if reasoning is None or reasoning.is_whole:
        return Opening()
    final = body.messages[-1].get("content") if body.continue_final_message else None
    if isinstance(final, str):
        # The output goes on with this message: only here may the markers stand anywhere.
        start = max(final.rfind(marker) for marker in reasoning.starts)
        end = max(final.rfind(marker) for marker in reasoning.ends)
        return Opening(is_open=start > end, is_closed=end > start)
    tail = state.frontend.tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=False)
    tail = tail.rstrip()
    return Opening(tail.endswith(reasoning.starts), tail.endswith(reasoning.ends))


def _bound(
    state: AppState,
    params: SamplingParams,
    formats: Formats,
    asked: Asked,
    opening: Opening,
    budget: Budget | None,
) -> SamplingParams:
    """The parameters with a grammar, where calls must be made or made in a certain way."""
    is_strict = any(tool.is_strict for tool in asked.tools)
    if not asked.tools or not (asked.must_call or is_strict or not asked.is_parallel):
        return params
    if params.structured_outputs is not None:
        raise RequestError(
            "the call asks for a format of the answer and for bound tool calls.",
            param="tool_choice",
            fix="Leave out one of the two.",
        )
    special = state.frontend.tokenizer.special_ids(formats.markers())
    ids = {marker: token_id for token_id, marker in special.items()}
    tools = asked.tools
    if not asked.must_call:
        tools = tuple(tool if tool.is_strict else tool._replace(parameters=_ANY) for tool in tools)
    grammar = grammar_of(
        formats,
        Demand(tools, asked.is_parallel, ids.get),
        is_open=opening.is_open,
        is_closed=opening.is_closed,
        is_free=not asked.must_call,
        budget=budget,
    )
    if not grammar:
        field = "tools" if is_strict else "parallel_tool_calls"
        raise RequestError(
            f"{field}: this model's calls cannot be bound while it is free not to call.",
            param=field,
            code="unsupported_field",
            fix="Leave out strict and parallel_tool_calls, or set tool_choice to required.",
        )
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise RequestError(
            f"tools make a grammar of {len(grammar)} characters; expected at most {MAX_GRAMMAR_CHARS}.",
            param="tools",
        )
    return msgspec.structs.replace(params, structured_outputs=StructuredOutputs(grammar=grammar))


def _after_reasoning(
    state: AppState,
    params: SamplingParams,
    formats: Formats,
    opening: Opening,
    budget: Budget | None,
) -> tuple[SamplingParams, Formats]:
    """A shape holds for what follows the reasoning. Where that cannot be said, it holds for all of the output, in which
    no reasoning is looked for then.
    """
    shape = params.structured_outputs
    if formats.reasoning is None or shape is None:
        return params, formats
    if shape.grammar is not None:
        # Ours has the reasoning in it; a caller's own speaks of all of the output.
        return params, formats
    special = state.frontend.tokenizer.special_ids(formats.markers())
    ids = {marker: token_id for token_id, marker in special.items()}
    made = after_reasoning(formats, shape, ids.get, is_open=opening.is_open, budget=budget)
    if made is None and budget is not None:
        raise _no_budget("the format that the answer is bound to leaves no room for reasoning")
    if made is None:
        return params, formats._replace(reasoning=None)
    return msgspec.structs.replace(params, structured_outputs=made), formats


def _budget(state: AppState, body: ChatBody, formats: Formats, opening: Opening) -> Budget | None:
    """The budget of the reasoning; None where none is set, or there is no reasoning to bound. Raises RequestError."""
    if body.thinking_token_budget is None or opening.is_closed:
        return None
    reasoning = formats.reasoning
    if reasoning is None or reasoning.is_whole:
        raise _no_budget("this model is not known to mark its reasoning in a way that can be ended")
    find = state.frontend.tokenizer.token_id
    start_id, end_id = find(reasoning.starts[0]), find(reasoning.ends[0])
    if start_id is None or end_id is None:
        raise _no_budget(f"{reasoning.ends[0]!r} is no single token of this model")
    if body.structured_outputs is not None and body.structured_outputs.grammar is not None:
        raise _no_budget("a grammar of the caller's own speaks of all of the output")
    return Budget(body.thinking_token_budget, start_id, end_id)


def _no_budget(why: str) -> RequestError:
    return RequestError(
        f"thinking_token_budget cannot be kept: {why}.",
        param="thinking_token_budget",
        code="unsupported_field",
        fix="Leave it out, and bound the whole with max_tokens.",
    )


async def _compile(state: AppState, params: SamplingParams, asked: Asked) -> None:
    """Have a grammar of ours compiled. Raises RequestError, of the tools where they are what it is made of."""
    if params.structured_outputs is None:
        return
    try:
        await state.frontend.grammars.compile(params.structured_outputs)
    except RequestError as error:
        if asked.tools and error.param and error.param.startswith("structured_outputs"):
            error.message = error.message.replace(error.param, "tools")
            error.param = "tools"
        raise


_ANY: dict[str, Any] = {"type": "object"}
"""The arguments of a tool that is not strict."""
