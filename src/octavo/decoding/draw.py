"""Random choices: temperature, min_p, top_k, top_p, and the inverse of the cumulative distribution.

Order as in vLLM (https://docs.vllm.ai/en/v0.22.1/api/vllm/v1/sample/sampler/): temperature, min_p,
top_k, top_p. Each of the last three is a floor under the logits. min_p keeps probabilities of at
least min_p times the largest; top_k keeps what is not below the k-th largest logit; top_p keeps the
most likely of what is left, up to and including the token with which they reach the mass top_p.
Tokens that tie with the last one kept are kept too, so that what is kept never depends on how a
sort breaks ties. The token is the first, in the order of ids, whose cumulative probability exceeds
a counter-based random number (`rng.py`).

Why a row's token does not depend on its neighbours: probabilities are fixed-point integers
(`_weights`), so that every sum is exact in any order, and all else is elementwise. So may short
cuts save work and never change a result.

Shape letters: N entries of the step, n rows drawn together, V vocabulary, K largest logits, B ids
of one block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from octavo.decoding.blocks import BLOCK, block_ids, block_maxima, block_sums, largest
from octavo.decoding.rng import uniform
from octavo.kernels.sampling import RowArray

_UNIT_BITS = 40
"""The most likely token weighs 2**40. 2**22 times it fits int64; below 2**-40 of it all vanishes."""
_NOTHING = -28.0
"""e**x of what is below is less than 2**-40."""
_MOST_FIRST = 1024
"""Largest top_k that is covered by the first look; a larger one would make its neighbours pay."""
_GROWTH = 8


class Draws(NamedTuple):
    """Parameters of n random rows on the logits' device, each [n, 1]."""

    temperature_n1: torch.Tensor
    """float32."""
    log_min_p_n1: torch.Tensor
    """float32, -inf without min_p."""
    top_k_n1: torch.Tensor
    """int64, V without a limit."""
    top_p_n1: torch.Tensor
    """float64."""
    uniform_n1: torch.Tensor
    """float64 in (0, 1)."""

    def take(self, rows_n: torch.Tensor) -> Draws:
        """Those of some rows."""
        return Draws(*(column.index_select(0, rows_n) for column in self))


def draws_of(
    params_n: RowArray, positions_n: npt.NDArray[np.int64], logits_NV: torch.Tensor
) -> Draws:
    """The parameters of some entries, in one upload to where the logits are."""
    uniform_n = uniform(params_n["seed"], params_n["index"], positions_n)
    top_k_n = np.minimum(params_n["top_k"], logits_NV.shape[1])
    columns = (
        params_n["temperature"].astype(np.float64),
        params_n["log_min_p"].astype(np.float64),
        top_k_n.astype(np.float64),
        params_n["top_p"],
        uniform_n,
    )
    table = torch.from_numpy(np.stack(columns)).to(logits_NV.device, non_blocking=True)[:, :, None]
    temperature_n1, log_min_p_n1, top_k_n1, top_p_n1, uniform_n1 = table.unbind(0)
    return Draws(
        temperature_n1.float(), log_min_p_n1.float(), top_k_n1.long(), top_p_n1, uniform_n1
    )


def draw_whole(logits_nV: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int64 [n]: rows without top_k and top_p. No sort: block sums, then one block's cumulative
    sum.

    `logits_nV` is float32.
    """
    max_n1 = block_maxima(logits_nV).amax(1, keepdim=True)
    weights_nV = _weights(logits_nV, max_n1, draws)
    upto_nX = block_sums(weights_nV).cumsum(1)
    target_n1 = _target(upto_nX[:, -1:], draws)
    block_n1 = (upto_nX <= target_n1).sum(1, keepdim=True).clamp_(max=upto_nX.shape[1] - 1)
    before_n1 = torch.where(block_n1 > 0, upto_nX.gather(1, (block_n1 - 1).clamp_(min=0)), 0)
    ids_nB, is_inside_nB = block_ids(block_n1, logits_nV.shape[1])
    weights_nB = weights_nV.gather(1, ids_nB).masked_fill_(~is_inside_nB, 0)
    upto_nB = weights_nB.cumsum(1) + before_n1
    place_n1 = (upto_nB <= target_n1).sum(1, keepdim=True).clamp_(max=BLOCK - 1)
    return ids_nB.gather(1, place_n1).squeeze(1)


def draw_cut(logits_nV: torch.Tensor, draws: Draws, num_first: int) -> torch.Tensor:
    """int64 [n]: rows with top_k or top_p.

    Looks at the largest logits first, and at more of them for the rows which those did not settle.

    Args:
        logits_nV: float32 [n, V].
        draws: their parameters.
        num_first: how many logits the first look takes; never changes a result.
    """
    vocab_size = logits_nV.shape[1]
    chosen_n = torch.zeros(len(logits_nV), dtype=torch.int64, device=logits_nV.device)
    pending_n = torch.arange(len(logits_nV), device=logits_nV.device)
    mass_n1 = torch.zeros_like(draws.top_k_n1)
    if bool((draws.top_k_n1 == vocab_size).any()):
        max_n1 = block_maxima(logits_nV).amax(1, keepdim=True)
        mass_n1 = _weights(logits_nV, max_n1, draws).sum(1, keepdim=True)
    num_seen = min(num_first, vocab_size)
    while True:
        drawn_n, is_settled_n = _draw_from_largest(logits_nV, mass_n1, draws, num_seen)
        chosen_n[pending_n] = drawn_n
        unsettled_n = torch.nonzero(~is_settled_n).flatten()
        if num_seen == vocab_size or not len(unsettled_n):
            return chosen_n
        pending_n, mass_n1 = pending_n[unsettled_n], mass_n1[unsettled_n]
        logits_nV, draws = logits_nV[unsettled_n], draws.take(unsettled_n)
        num_seen = min(num_seen * _GROWTH, vocab_size)


def num_first_look(top_k_n: npt.NDArray[np.int64], num_prefilter: int) -> int:
    """How many logits to look at first: enough for a moderate top_k and a tie with its last one."""
    moderate = top_k_n[top_k_n < _MOST_FIRST]
    return max(num_prefilter, int(moderate.max()) + 1 if moderate.size else 0)


def _draw_from_largest(
    logits_nV: torch.Tensor, mass_n1: torch.Tensor, draws: Draws, num_seen: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the `num_seen` largest logits.

    Tokens, int64 [n], and whether those logits hold all tokens that are kept, bool [n]. `mass_n1`,
    int64 [n, 1], is the weight of the whole vocabulary after min_p, for rows without top_k.
    """
    values_nK, ids_nK = largest(logits_nV, num_seen)
    weights_nK = _weights(values_nK, values_nK[:, :1], draws)
    least_n1 = values_nK[:, -1:]
    has_top_k_n1 = draws.top_k_n1 < logits_nV.shape[1]
    kth_n1 = values_nK.gather(1, (draws.top_k_n1 - 1).clamp(max=num_seen - 1))
    is_complete_n1 = (weights_nK[:, -1:] == 0) | (has_top_k_n1 & (least_n1 < kth_n1))
    weights_nK = weights_nK.masked_fill_(has_top_k_n1 & (values_nK < kth_n1), 0)
    upto_nK = weights_nK.cumsum(1)
    mass_n1 = torch.where(has_top_k_n1, upto_nK[:, -1:], mass_n1)
    wanted_n1 = (mass_n1.double() * draws.top_p_n1).ceil().long().clamp_(min=1)
    place_n1 = (upto_nK < torch.minimum(wanted_n1, mass_n1)).sum(1, keepdim=True)
    floor_n1 = values_nK.gather(1, place_n1.clamp(max=num_seen - 1))
    has_floor_n1 = ~has_top_k_n1 & (place_n1 < num_seen) & (least_n1 < floor_n1)
    weights_nK = weights_nK.masked_fill_(values_nK < floor_n1, 0)
    return _draw_by_id(weights_nK, ids_nK, draws), (is_complete_n1 | has_floor_n1).squeeze(1)


def _draw_by_id(weights_nK: torch.Tensor, ids_nK: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int64 [n]: invert the cumulative weights in the order of ids, whatever order they come in."""
    ids_nK, by_id_nK = ids_nK.sort(dim=1)
    upto_nK = weights_nK.gather(1, by_id_nK).cumsum(1)
    place_n1 = (upto_nK <= _target(upto_nK[:, -1:], draws)).sum(1, keepdim=True)
    return ids_nK.gather(1, place_n1.clamp_(max=ids_nK.shape[1] - 1)).squeeze(1)


def _target(total_n1: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int64 [n, 1] in [0, total): the token is the first whose cumulative weight exceeds it."""
    return torch.minimum((total_n1.double() * draws.uniform_n1).long(), total_n1 - 1)


def _weights(values_nX: torch.Tensor, max_n1: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int64 [n, X]: probabilities after temperature and min_p; the largest is 2**40."""
    scaled_nX = (values_nX - max_n1).div_(draws.temperature_n1)
    is_below_nX = (scaled_nX < draws.log_min_p_n1) | (scaled_nX < _NOTHING)
    return _fixed_exp(scaled_nX.clamp_(min=_NOTHING)).masked_fill_(is_below_nX, 0)


def _fixed_exp(x_nX: torch.Tensor) -> torch.Tensor:
    """int64 [n, X]: 2**40 e**x for float32 x from -28 to 0, within 2 units in the 24th place.

    Not torch's `exp`, whose last bits depend on the machine: single multiplications and sums are
    the same everywhere, and `csrc/cpu/sample_body.h` does these in this order. e**x = 2**n e**r with
    |r| <= ln(2) / 2 and the polynomial of Cephes' expf (https://www.netlib.org/cephes/).
    """
    shift = 1.5 * 2.0**23  # adding it rounds to the nearest integer
    n_nX = x_nX.mul(1.44269504088896341).add_(shift).sub_(shift)
    r_nX = x_nX - n_nX * 0.693359375
    r_nX = r_nX + n_nX * 2.12194440e-4
    p_nX = r_nX.mul(1.9875691500e-4).add_(1.3981999507e-3)
    for term in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p_nX = p_nX.mul_(r_nX).add_(term)
    p_nX = p_nX.mul_(r_nX * r_nX).add_(r_nX).add_(1.0)
    power_nX = ((n_nX.int() + (127 + _UNIT_BITS)) << 23).view(torch.float32)
    return p_nX.mul_(power_nX).long()
