"""One step as tensors on one rank. Passed as an argument, never a global. Built by `engine/prepare.py` alone.

Shape letters: T tokens in the step, S slices, N logits rows wanted, B blocks in the longest table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from octavo.core.kvspec import KVSpec


class AttentionPlans(Protocol):
    """Attention plans that outlast a step: those of a captured one, which reads them where they lie."""

    def plan(self, backend: Any, group: int, spec: KVSpec, /) -> Any:
        """The backend's plan for a KV group, filled for the step at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """Where one KV group's keys and values are, for the slices of this step."""

    slots_T: torch.Tensor
    """int64 [T]: block * BLOCK_SIZE + offset where each token's key and value go."""
    block_tables_SB: torch.Tensor
    """int32 [S, B]: block ids in token order, 0-padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """All that a model's forward needs to know about the step.

    Rows of one slice are adjacent and slices are in the plan's order. The host lists duplicate small tensors so that
    planning on the host needs no device read.
    """

    token_ids_T: torch.Tensor
    """int64 [T]."""
    positions_T: torch.Tensor
    """int64 [T]."""
    query_starts: tuple[int, ...]
    """[S + 1]: slice i owns rows query_starts[i] .. query_starts[i + 1]."""
    context_lens: tuple[int, ...]
    """[S]: tokens of each sequence in the cache after this step."""
    groups: tuple[GroupBatch, ...]
    """One per KV group, in the order of `group_layers`."""
    logits_rows_N: torch.Tensor
    """int64 [N]: rows of T whose logits are wanted."""
    type_ids_T: torch.Tensor | None = None
    """int64 [T]: 1 for the tokens of the second text of a pair, else 0; None where no prompt is a pair."""
    plans: AttentionPlans | None = None
    """Of a step that is captured; else backends plan each step anew."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.query_starts[-1]

    @property
    def num_slices(self) -> int:
        """S."""
        return len(self.context_lens)
