"""How many prompt tokens a step may run beside decodes, in tokens and in predicted time."""

from __future__ import annotations

import math

from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.steptime import StepTime, attended
from octavo.scheduler.limits import Limits

_MOST_ERROR = 0.5


class PrefillBudget:
    """What is left in one step. Without decodes, or without chunks, only the tokens of a step are counted.

    With `max_itl_s`: as long as the whole step is predicted to stay under it, with the usual error of predictions on
    top. Else: what PREFILL_SHARE of the step's tokens cost at the start of a prompt. The same chunk late in a long prompt
    reads more context and takes longer, so it gets fewer tokens. The first chunk of a step is never less than a block, so
    that prompts always proceed.
    """

    def __init__(
        self, limits: Limits, line: StepTime | None, num_decodes: int, context: float
    ) -> None:
        self.tokens = limits.prefill_budget(num_decodes)
        self.seconds = math.inf
        self._line = line if line is not None else StepTime()
        self._is_first = True
        self._has_chunks = limits.enable_chunked_prefill
        if line is None or num_decodes == 0 or not limits.enable_chunked_prefill:
            return
        if limits.max_itl_s is not None:
            self.tokens = limits.max_num_batched_tokens - num_decodes
            rest = line.predict(num_decodes, context, is_mixed=True)
            self.seconds = most_s(limits.max_itl_s, line) - rest
        elif limits.prefill_share < 1:
            self.seconds = line.token_s * self.tokens + line.context_s * attended(0, self.tokens)

    def most(self, start: int) -> int:
        """Tokens that a chunk from position `start` on may have; 0 when the step is full."""
        if self.seconds == math.inf or self.tokens <= 0:
            return max(0, self.tokens)
        per_token = self._line.token_s + self._line.context_s * (start + 0.5)
        count = self.tokens
        if per_token > 0:
            seconds = max(0.0, self.seconds)
            # count x per_token + context_s x count^2 / 2 = seconds, solved so that nothing cancels.
            root = math.sqrt(per_token * per_token + 2 * self._line.context_s * seconds)
            count = min(count, int(2 * seconds / (per_token + root)))
        return min(self.tokens, max(count, BLOCK_SIZE)) if self._is_first else count

    def first(self, num_tokens: int, num_cached: int) -> int:
        """Tokens that a sequence would start with behind those that are cached; 0 where the step has too few."""
        left = num_tokens - num_cached
        count = min(left, self.most(num_cached))
        return count if count >= 1 and (count == left or self._has_chunks) else 0

    def spend(self, start: int, count: int) -> None:
        """A chunk was planned."""
        self._is_first = False
        self.tokens -= count
        self.seconds -= self._line.token_s * count + self._line.context_s * attended(start, count)


def fits_row(limits: Limits, line: StepTime | None, rows: int, context: float) -> bool:
    """Whether `rows` decodes over `context` tokens stay under `max_itl_s`."""
    if limits.max_itl_s is None or line is None:
        return True
    return line.predict(rows, context) <= most_s(limits.max_itl_s, line)


def most_s(max_itl_s: float, line: StepTime) -> float:
    """What a step may be predicted to take so that most do not exceed `max_itl_s`."""
    return max_itl_s / (1 + min(line.error, _MOST_ERROR))
