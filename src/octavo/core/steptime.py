"""How long a step takes, as one line: what it costs at all, per token, and per token of context that is read.

`scheduler` fits it to measured steps, the engine sends it along with its statistics, and whoever has to promise
something (admission, fair shares, health) reads it. A line is the roofline model of a decoder with its knee left
out (Williams et al., 2009): weights are read once per step, arithmetic grows with tokens, attention with context.
"""

from __future__ import annotations

import msgspec


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients in seconds; all zero until something was measured."""

    base_s: float = 0.0
    """A step with next to nothing in it."""
    chunk_s: float = 0.0
    """Beyond that, a step in which some sequence has more than one token: it is not replayed from a recording. Negative
    where reading the weights hides behind the arithmetic of many tokens."""
    token_s: float = 0.0
    """Each token that goes through the model."""
    context_s: float = 0.0
    """Each token of context that one token attends to (a chunk of c tokens after p reads c * (p + c / 2))."""
    error: float = 0.0
    """Typical relative error of late predictions: the 80 % quantile of |measured - predicted| / predicted."""
    num_steps: int = 0
    """Steps it was fitted to; below a few dozen it says little."""

    def predict(self, tokens: int, context: float, *, is_mixed: bool = False) -> float:
        """Seconds of a step of `tokens` tokens that attend to `context` tokens in all.

        `is_mixed`: some sequence has more than one of them.
        """
        base_s = self.base_s + self.chunk_s if is_mixed else self.base_s
        return base_s + self.token_s * tokens + self.context_s * context


def attended(start: int, count: int) -> float:
    """Tokens of context that a slice of `count` tokens from position `start` on attends to."""
    return count * (start + (count + 1) / 2)
