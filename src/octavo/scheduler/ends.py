"""How sequences end: by which token, and what is said of it."""

from __future__ import annotations

from octavo.core.errors import ErrorInfo
from octavo.core.result import Finished, FinishReason, RequestTiming
from octavo.core.sequence import Sequence, SequenceState


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


def end_of(sequence: Sequence, token_id: int) -> tuple[FinishReason, int | None] | None:
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
