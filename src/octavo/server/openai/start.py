"""What completions and chat completions do alike between a checked body and running generations."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.engine.beam import BeamGeneration, check_width
from octavo.engine.frontend import Caller, Generation
from octavo.server.call import Call
from octavo.server.schema import GenerateBody
from octavo.server.state import AppState

_NO_BEAMS: dict[str, tuple[object, ...]] = {
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "min_tokens": (0,),
    "stop": ([],),
    "prompt_logprobs": (),
    "ttft_slo_ms": (),
}
"""What a beam search cannot honour, and the values that ask for nothing. A seed changes nothing where nothing is drawn."""


def answer_id(call: Call, body: GenerateBody, prefix: str) -> str:
    """The id of the answer: the caller's, or that of the call."""
    return f"{prefix}-{body.request_id or call.id}"


def check_beams(body: GenerateBody) -> None:
    """Refuse what does not go with a beam search, or needs one.

    Raises:
        RequestError: naming the field.
    """
    if not body.use_beam_search:
        if body.length_penalty not in (None, 1.0):
            raise RequestError(
                f"length_penalty is {body.length_penalty} and use_beam_search is not set.",
                param="length_penalty",
                fix="Set use_beam_search to true.",
            )
        return
    check_width(body.n or 1, len(body.stop_token_ids or ()))
    for name, neutral in _NO_BEAMS.items():
        value = getattr(body, name)
        if value is not None and value not in neutral:
            raise RequestError(
                f"{name} does not go with use_beam_search, which takes the likeliest texts as they are.",
                param=name,
                fix="Leave one of them out.",
            )


def truncated(
    ids: list[int], body: GenerateBody, max_tokens: int | None, max_model_len: int
) -> tuple[list[int], int | None]:
    """The prompt as long as the body allows, and how many tokens that leaves out; None where it does not ask.

    Raises:
        RequestError: a length that leaves nothing, or a side without a length.
    """
    most = body.truncate_prompt_tokens
    if most is None:
        if body.truncation_side is not None:
            raise RequestError(
                "truncation_side is set and truncate_prompt_tokens is not.",
                param="truncation_side",
            )
        return ids, None
    if most == -1:
        most = max(1, max_model_len - (max_tokens or 1))
    if not 1 <= most <= max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens is {most}; expected -1, or 1 to {max_model_len} tokens.",
            param="truncate_prompt_tokens",
        )
    kept = ids[:most] if body.truncation_side == "right" else ids[-most:]
    return kept, len(ids) - len(kept)


def begin(
    state: AppState,
    ids: list[int],
    num_cut: int | None,
    body: GenerateBody,
    params: SamplingParams,
    *,
    caller: Caller,
    request_id: str,
    kept: Mapping[int, str] | None = None,
) -> Generation:
    """Start a prompt's choices, sampled or searched; `kept` as in `Frontend.start`.

    Raises:
        RequestError: as `Frontend.build` does, or a search that is to be bound to a format.
    """
    if body.use_beam_search and params.structured_outputs is not None:
        raise RequestError(
            "use_beam_search does not go with an output that is bound to a format.",
            param="use_beam_search",
            fix="Leave one of them out.",
        )
    frontend = state.frontend
    if body.use_beam_search:
        penalty = 1.0 if body.length_penalty is None else body.length_penalty
        requests = frontend.build(ids, params, caller, request_id)
        generation: Generation = BeamGeneration(frontend, requests, penalty, kept)
    else:
        generation = frontend.start(ids, params, caller=caller, request_id=request_id, kept=kept)
    generation.usage.truncated_tokens = num_cut
    return generation
