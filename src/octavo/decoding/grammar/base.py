"""What a grammar is to the sampler: which tokens may come next."""

from __future__ import annotations

from typing import Protocol

import torch


class Grammar(Protocol):
    """The state of one request's structured output. Owner: the runner's row."""

    def mask(self, allowed_V: torch.Tensor) -> None:
        """Fill bool [V] (host) with whether each token may come next."""

    def advance(self, token_id: int) -> bool:
        """Take a token; False when the grammar does not allow it (the state is then unchanged)."""

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens, which speculation proposed and verification refused."""
