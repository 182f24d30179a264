"""Reductions over the vocabulary in two levels: all blocks of it, then the block or blocks that
matter.

torch's one-pass argmax and top-k are several times slower on a CPU than its amax: 0.17 and 0.43 (k
= 50) against 0.02 ms for 151,936 float32 on one thread of an AMD EPYC (torch 2.13, 2026-11).

Shape letters: n rows, V vocabulary, X blocks, B ids of one block, K largest.
"""

from __future__ import annotations

import torch

BLOCK = 512
"""Entries per block where one block is looked into."""
_SMALL_BLOCK = 64
"""Entries per block where many blocks are looked into."""


def block_maxima(values_nV: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """[n, X]: the largest value of each block, the last one maybe shorter. NaN is the largest."""
    heads_nXB, tail_nB = _split(values_nV, block)
    heads_nX = heads_nXB.amax(2)
    if not tail_nB.shape[1]:
        return heads_nX
    return torch.cat([heads_nX, tail_nB.amax(1, keepdim=True)], 1)


def block_sums(values_nV: torch.Tensor) -> torch.Tensor:
    """[n, X]: the sum of each block; the last one, maybe empty, is what is left over."""
    heads_nXB, tail_nB = _split(values_nV, BLOCK)
    return torch.cat([heads_nXB.sum(2), tail_nB.sum(1, keepdim=True)], 1)


def block_ids(block_n1: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of one block per row.

    int64 [n, B] kept inside the vocabulary, and bool [n, B]: which were inside anyway.
    """
    ids_nB = block_n1 * BLOCK + torch.arange(BLOCK, device=block_n1.device)
    return ids_nB.clamp(max=vocab_size - 1), ids_nB < vocab_size


def row_argmax(values_nV: torch.Tensor) -> torch.Tensor:
    """int64 [n]: the id of the largest value, the lowest id among equals."""
    block_n1 = block_maxima(values_nV).argmax(1, keepdim=True)
    ids_nB, is_inside_nB = block_ids(block_n1, values_nV.shape[1])
    values_nB = values_nV.gather(1, ids_nB).masked_fill_(~is_inside_nB, -torch.inf)
    return ids_nB.gather(1, values_nB.argmax(1, keepdim=True)).squeeze(1)


def largest(values_nV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest values [n, K], descending, and their ids int64 [n, K].

    Which ids stand for values that tie with the last one is open, as in `torch.topk`.
    """
    num_whole = values_nV.shape[1] // _SMALL_BLOCK
    if num_whole < 8 * count:
        return values_nV.topk(count, dim=1)
    # The `count` largest values lie in the `count` blocks of largest maxima.
    maxima_nX = block_maxima(values_nV, _SMALL_BLOCK)
    blocks_nK1 = maxima_nX.topk(count, dim=1).indices[:, :, None]
    ids_nKB = blocks_nK1 * _SMALL_BLOCK + torch.arange(_SMALL_BLOCK, device=values_nV.device)
    ids_nE = ids_nKB.flatten(1)
    is_outside_nE = ids_nE >= values_nV.shape[1]
    ids_nE = ids_nE.clamp_(max=values_nV.shape[1] - 1)
    values_nE = values_nV.gather(1, ids_nE).masked_fill_(is_outside_nE, -torch.inf)
    values_nK, places_nK = values_nE.topk(count, dim=1)
    return values_nK, ids_nE.gather(1, places_nK)


def _split(values_nV: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole blocks [n, X, B], and what is left over [n, less than B]."""
    num_blocks = values_nV.shape[1] // block
    heads_nV, tail_nB = values_nV.tensor_split((num_blocks * block,), dim=1)
    return heads_nV.view(len(heads_nV), num_blocks, block), tail_nB
