"""The sampling fields of a body, over the model author's defaults, to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.errors import RequestError
from octavo.core.params import MAX_LOGIT_BIAS, SamplingParams
from octavo.engine.frontend import Caller
from octavo.server.openai.output_format import output_format
from octavo.server.schema import GenerateBody
from octavo.server.schema_pooling import PoolingBase
from octavo.server.state import AppState

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
        values["logit_bias"] = _biases(body.logit_bias)
    values["structured_outputs"] = output_format(body)
    return SamplingParams(logprobs=logprobs, max_tokens=max_tokens, **values)


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    if len(given) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias has {len(given)} entries; expected at most {MAX_LOGIT_BIAS}.",
            param="logit_bias",
        )
    biases: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise RequestError(
                f"logit_bias has the key {key[:40]!r}; expected token ids.", param="logit_bias"
            )
        biases[int(key)] = bias
    return biases


def caller_of(caller: Caller, body: GenerateBody | PoolingBase, state: AppState) -> Caller:
    """The caller with the priority that the body asks for.

    Raises:
        RequestError: a priority, where the scheduler would not look at it.
    """
    if not body.priority:
        return caller
    if state.scheduling_policy != "priority":
        raise RequestError(
            f"priority is {body.priority}, and this server schedules by {state.scheduling_policy!r}.",
            param="priority",
            fix="Leave it out, or start the server with --scheduling-policy priority.",
        )
    return caller._replace(priority=body.priority)
