"""What a linear kernel is: it may repack the weight once, then multiplies."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from octavo.kernels.gemm.formats import Quantized
from octavo.kernels.rounded import Rounded


class LinearKernel(Protocol):
    """x @ weight^T + bias for one (out, in) size. Shape letters: N rows, D in, O out."""

    repacks: bool
    """Whether `pack` copies. Then it also has `rows`, so that a head tied to the embedding can replace its table."""

    def stores(self, checkpoint: str, /) -> str:
        """The dtype in which it wants a checkpoint's weights, by name; at least as precise as the case's or theirs."""

    def pack(self, weight_OD: torch.Tensor, /) -> Any:
        """The weight in the kernel's own layout; called once, after loading. The caller drops `weight_OD`."""

    def rows(self, packed: Any, ids_T: torch.Tensor, /) -> torch.Tensor:
        """Rows int64 [T] of the weight, [T, D] in the case's dtype: an embedding."""

    def run(self, x_ND: torch.Tensor, packed: Any, bias_O: torch.Tensor | None, /) -> torch.Tensor:
        """[N, D] -> [N, O] in x's dtype."""


@runtime_checkable
class AdoptingKernel(LinearKernel, Protocol):
    """One that can keep the levels of a checkpoint that is quantized already, without rounding again."""

    def adopts(self, levels: Quantized, /) -> bool:
        """Whether they are of its format."""

    def adopt(self, levels: Quantized, /) -> Any:
        """As `pack`, of levels."""


@runtime_checkable
class RoundingKernel(LinearKernel, Protocol):
    """One that rounds rows to 8 bits before it multiplies, and takes them rounded already."""

    rounds_rows: str
    """To what: `WeightFormat.rows`."""

    def run_rounded(
        self, rounded: Rounded, packed: Any, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """As `run`, of rows that are rounded: [N, D] -> [N, O] in the dtype that they had."""
