"""The sampling fields of a body, over the model author's defaults, to `SamplingParams`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.engine.frontend import Caller
from octavo.scheduler.policies.registry import POLICIES
from octavo.server.call import Call
from octavo.server.openai.output_format import output_format
from octavo.server.schema import GenerateBody
from octavo.server.schema_pooling import PoolingBase

_PLAIN = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
    "include_stop_str_in_output",
    "ignore_eos",
    "prompt_logprobs",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
_LISTS = ("bad_words", "allowed_token_ids", "stop_token_ids")
_DEFAULTABLE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_params(
    body: GenerateBody,
    defaults: Mapping[str, float | int],
    *,
    logprobs: int | None,
    max_tokens: int | None,
) -> SamplingParams:
    """The parameters of a call. What the body leaves unset or null comes from `defaults`, then from ours.

    Raises:
        RequestError: a field is out of range.
    """
    values: dict[str, Any] = {name: defaults[name] for name in _DEFAULTABLE if name in defaults}
    for name in _PLAIN:
        value = getattr(body, name)
        if value is not None:
            values[name] = value
    for name in _LISTS:
        value = getattr(body, name)
        if value is not None:
            values[name] = tuple(value)
    if body.stop is not None:
        values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.logit_bias is not None:
        values["logit_bias"] = {int(key): bias for key, bias in body.logit_bias.items()}
    values["structured_outputs"] = output_format(body)
    return SamplingParams(logprobs=logprobs, max_tokens=max_tokens, **values)


def salted(scope: str, salt: str) -> str:
    """A cache scope inside `scope`: a salt can only narrow who shares prefixes, never reach another caller's."""
    return hashlib.sha256(f"{len(scope)}:{scope}{salt}".encode()).hexdigest()


def caller_of(call: Call, body: GenerateBody | PoolingBase) -> Caller:
    """The caller with the priority, the cache salt and the times that the body asks for.

    Raises:
        RequestError: a priority, where the scheduler would not look at it.
    """
    caller, state = call.caller, call.state
    if body.deadline_ms is not None:
        caller = caller._replace(deadline=call.began + body.deadline_ms / 1000)
    if isinstance(body, GenerateBody) and body.ttft_slo_ms is not None:
        caller = caller._replace(first_token_by=call.began + body.ttft_slo_ms / 1000)
    if body.cache_salt is not None:
        caller = caller._replace(cache_scope=salted(caller.cache_scope, body.cache_salt))
    if not body.priority:
        return caller
    if not POLICIES.load(state.scheduling_policy).uses_priority:
        raise RequestError(
            f"priority is {body.priority}, and this server schedules by {state.scheduling_policy!r}.",
            param="priority",
            fix="Leave it out, or start the server with another --scheduling-policy.",
        )
    return caller._replace(priority=caller.priority + body.priority)
