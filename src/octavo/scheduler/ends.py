"""What sampled tokens make of a sequence; how it ends: by which token, and what is said of it."""

from __future__ import annotations

from octavo.core.errors import ErrorInfo
from octavo.core.result import Finished, FinishReason, RequestTiming, SliceResult, TokenOut
from octavo.core.sequence import Sequence, SequenceState

End = tuple[FinishReason, int | None]
"""Why, and the caller's stop token that it was."""


def take(
    sequence: Sequence, outcome: SliceResult, now: float
) -> tuple[TokenOut | None, End | None]:
    """Append the accepted tokens up to a stop; what to say of them, and the sequence's end if this is it."""
    token_ids, known = outcome.token_ids, sequence.token_ids
    logprobs = outcome.logprobs
    end: End | None = None
    for taken, token_id in enumerate(token_ids, 1):
        known.append(token_id)
        if token_id in sequence.stop_ids or len(known) >= sequence.most_tokens:
            end = end_of(sequence, token_id)
            if end is not None:
                token_ids = token_ids[:taken]
                logprobs = None if logprobs is None else logprobs[:taken]
                break
    if outcome.is_finished and token_ids == outcome.token_ids:
        end = end if end is not None and end[0] == "stop" else ("stop", None)
    num_cached, admitted = 0, None
    if token_ids:
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            num_cached, admitted = sequence.num_cached, sequence.admitted_at
        sequence.last_token_at = now
    elif outcome.prompt_logprobs is None:
        return None, end
    token_out = TokenOut(
        id=sequence.request.id,
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=outcome.prompt_logprobs,
        num_cached=num_cached,
        admitted=admitted,
        num_preemptions=sequence.num_preemptions,
    )
    return token_out, end


def finished(sequence: Sequence, reason: FinishReason, stop_token: int | None) -> Finished:
    """The event of a good end."""
    return Finished(
        id=sequence.id,
        reason=reason,
        stop_token=stop_token,
        num_prompt=sequence.request.num_prompt,
        num_output=sequence.num_output,
        num_cached=sequence.num_cached,
        num_preemptions=sequence.num_preemptions,
        timing=RequestTiming(
            arrived=sequence.request.arrived,
            admitted=sequence.admitted_at,
            first_token=sequence.first_token_at,
            last_token=sequence.last_token_at,
        ),
    )


def expired(sequence: Sequence, now: float) -> ErrorInfo:
    """Why a request is ended whose deadline has passed."""
    request = sequence.request
    late = now - (request.deadline or now)
    where = "while it ran" if sequence.state is SequenceState.RUNNING else "while it waited"
    return ErrorInfo(
        code="deadline_exceeded",
        message=f"the request's deadline passed {late:.3f} s ago, {where}, {now - request.arrived:.3f} s after it "
        f"arrived; {sequence.num_output} of at most {request.max_tokens} output tokens were made.",
        status=504,
        fix="Allow more time, ask for fewer tokens, or try again when less waits.",
    )


def end_of(sequence: Sequence, token_id: int) -> End | None:
    """Why the sequence ends with this token, if it does. Stop tokens before min_tokens are masked by the sampler."""
    request = sequence.request
    if sequence.num_output >= request.params.min_tokens:
        if token_id in request.eos_token_ids:
            return ("stop", None)
        if token_id in request.params.stop_token_ids:
            return ("stop", token_id)
    if sequence.num_output >= request.max_tokens:
        return ("length", None)
    return None
