"""Divides the engine's time among requests, without a rest. No torch, no clock: the loop says what time it is.

A step's elapsed time is shared among its slices in proportion to what each is predicted to cost by the fitted line of
`core/steptime.py`: an equal share of the base (the weights, which are read once per step), `token_s` per token, `context_s`
per token of context that is read. Shares are scaled to sum to what was measured, so an error of the line moves time between
requests of one step and makes none and loses none. Until the line is fitted, tokens alone count.

Positions of a prompt are prefill, later ones decode. What had been computed before is neither: up to where a sequence gave
way it is preemption, and up to where an earlier engine had sent tokens it is failover. A slice over a border is divided at
it. The time between steps is overhead while there is work; while there is none, nothing is told and the client knows that
the engine was idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from octavo.core.charge import Charges, RequestCharge
from octavo.core.plan import Decodes, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished, StepResult
from octavo.core.steptime import StepTime, attended

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EVERY_S = 0.5
"""What a killed engine had not told yet is at most this, and a step."""


class _Spent:
    """One request that has run, and what is to be told of it. Owner: the ledger."""

    __slots__ = (
        "again_to",
        "computed",
        "decode_from",
        "decode_s",
        "failover_s",
        "failover_to",
        "id",
        "num_prompt",
        "preemption_s",
        "prefill_s",
        "prefill_tokens",
    )

    def __init__(self, request: Request) -> None:
        self.id = request.id
        self.num_prompt = request.num_prompt
        self.again_to = 0  # positions below were computed before it gave way
        # The last token of an earlier engine was sampled there and never went through its model.
        self.failover_to = request.num_prompt + len(request.resumed) - 1 if request.resumed else 0
        self.decode_from = max(self.num_prompt, self.failover_to)
        self.computed = 0  # positions below have been computed at some time
        self.clear()

    def clear(self) -> None:
        """It was told."""
        self.prefill_s = self.decode_s = self.preemption_s = self.failover_s = 0.0
        self.prefill_tokens = 0

    def start_again(self) -> None:
        """It runs again after it gave way."""
        self.again_to = self.computed
        self.decode_from = max(self.decode_from, self.again_to)

    def take(self, piece: Slice, line: StepTime, share_s: float, seconds: float) -> None:
        """Book a slice that is not plain decode, part by part; `share_s` of the base is the slice's."""
        start, end = piece.start, piece.start + piece.count + len(piece.draft)
        again = min(max(start, self.again_to), end)
        resumed = min(max(again, self.failover_to), end)
        prompt = min(max(resumed, self.num_prompt), end)
        base_s = share_s / (end - start) + line.token_s
        parts = [
            (upper - lower) * base_s + line.context_s * attended(lower, upper - lower)
            for lower, upper in ((start, again), (again, resumed), (resumed, prompt), (prompt, end))
        ]
        each = seconds / sum(parts)
        self.preemption_s += each * parts[0]
        self.failover_s += each * parts[1]
        self.prefill_s += each * parts[2]
        self.decode_s += each * parts[3]
        self.prefill_tokens += prompt - resumed
        self.computed = max(self.computed, piece.start + piece.count)

    def charge(self, *, is_final: bool = False) -> RequestCharge:
        """What is to be told; it is told then."""
        charge = RequestCharge(
            self.id,
            self.prefill_s,
            self.decode_s,
            self.preemption_s,
            self.failover_s,
            self.prefill_tokens,
            is_final,
        )
        self.clear()
        return charge


class _Decoding:
    """The requests of steps in which the same ones decode, and what they spent there: added up side by side."""

    __slots__ = ("end_S", "rows", "seconds_S", "spent")

    def __init__(self, slices: Decodes, spent: list[_Spent]) -> None:
        self.rows = slices.rows
        self.spent = spent
        self.seconds_S: npt.NDArray[np.floating[Any]] = slices.start_S * 0.0
        self.end_S = slices.start_S

    def settle(self) -> None:
        """Book it where it belongs."""
        for spent, seconds, end in zip(
            self.spent, self.seconds_S.tolist(), self.end_S.tolist(), strict=True
        ):
            spent.decode_s += seconds
            spent.computed = end
        self.seconds_S = self.end_S * 0.0


_ENDS = frozenset((Finished, Failed))
_TOKENS_ALONE = StepTime(token_s=1.0)


class Ledger:
    """Owner: the engine loop. Every moment from the first `wake` on is in exactly one window, or between two.

    `every_s` is how often whole windows are told; 0: after every step.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self._open: dict[str, _Spent] = {}
        self._rows: dict[int, _Spent] = {}
        self._decoding: _Decoding | None = None
        self._overhead_s = 0.0
        self._since = self._at = 0.0  # of the window; up to where time is booked
        self._is_resting = True

    def wake(self, now: float) -> None:
        """There was nothing to do until now."""
        if self._is_resting:
            self._since = self._at = now

    def add(self, plan: StepPlan, result: StepResult, line: StepTime | None, now: float) -> None:
        """Book a step that has just ended, and as overhead what lies before it; `line` once it is fitted."""
        self._is_resting = False
        elapsed_s = min(result.elapsed_s, now - self._at)
        self._overhead_s += now - self._at - elapsed_s
        self._at = now
        rows, slices = self._rows, plan.slices
        decoding = self._decoding
        if decoding is not None and not (
            isinstance(slices, Decodes) and slices.rows is decoding.rows
        ):
            self._settle()
            self._decoding = None
        for row in plan.ended:
            rows.pop(row, None)
        for start in plan.starts:
            rows[start.row] = self._begin(start.request)
        if not slices:
            self._overhead_s += elapsed_s
            return
        if line is None or line.predict(1, 1.0) <= 0:
            line = _TOKENS_ALONE
        base_s = line.base_s + line.chunk_s if plan.num_tokens > len(slices) else line.base_s
        share_s, context_s = base_s / len(slices), line.context_s
        plain_s = share_s + line.token_s + context_s
        if isinstance(slices, Decodes) and self._all_decode(slices):
            assert self._decoding is not None
            all_s = len(slices) * (share_s + line.token_s) + context_s * slices.context
            scale = elapsed_s / (all_s or 1.0)
            self._decoding.seconds_S += scale * plain_s + (scale * context_s) * slices.start_S
            self._decoding.end_S = slices.start_S + 1
            return
        weights = [
            plain_s + context_s * piece.start
            if piece.count == 1
            else share_s
            + line.token_s * (piece.count + len(piece.draft))
            + context_s * attended(piece.start, piece.count)
            for piece in slices
        ]
        scale = elapsed_s / (sum(weights) or 1.0)
        for piece, weight in zip(slices, weights, strict=True):
            spent = rows[piece.row]
            if piece.start >= spent.decode_from:
                spent.decode_s += scale * weight
                spent.computed = piece.start + piece.count
            else:
                spent.take(piece, line, share_s, scale * weight)

    def _all_decode(self, slices: Decodes) -> bool:
        """Whether what these slices cost is plain decode, all of it; then there is somewhere to add it up."""
        if self._decoding is None:
            spent = [self._rows[row] for row in slices.rows]
            starts = slices.start_S.tolist()
            if any([at < each.decode_from for at, each in zip(starts, spent, strict=True)]):
                return False
            self._decoding = _Decoding(slices, spent)
        return True

    def _settle(self) -> None:
        if self._decoding is not None:
            self._decoding.settle()

    def due(self, events: Iterable[Event], now: float, *, is_idle: bool) -> Charges | None:
        """What is to be told at the end of a turn of the loop with these events, if anything is.

        `is_idle`: there is nothing to do from now on.
        """
        ended = [event.id for event in events if type(event) in _ENDS]
        if self._is_resting or (now - self._since < self.every_s and not is_idle):
            if not ended:
                return None
            self._settle()
            return Charges(
                since=self._since, until=now, requests=self._final(ended), is_whole=False
            )
        self._settle()
        charges = [
            *self._final(ended),
            *[spent.charge() for spent in self._open.values() if spent.computed],
        ]
        told = Charges(
            since=self._since,
            until=now,
            requests=tuple([charge for charge in charges if charge.is_final or charge.total_s]),
            overhead_s=self._overhead_s + now - self._at,
            is_idle=is_idle,
        )
        self._since = self._at = now
        self._overhead_s = 0.0
        self._is_resting = is_idle
        return told

    def _begin(self, request: Request) -> _Spent:
        spent = self._open.get(request.id)
        if spent is None:
            spent = self._open[request.id] = _Spent(request)
        else:
            spent.start_again()
        return spent

    def _final(self, ended: list[str]) -> tuple[RequestCharge, ...]:
        found = [(name, self._open.pop(name, None)) for name in ended]
        return tuple(
            RequestCharge(name, is_final=True) if spent is None else spent.charge(is_final=True)
            for name, spent in found
        )
