"""Log-probabilities of chosen and of most likely tokens on the device, for the rows that ask for them.

What `decoding/logprobs.py` says, from raw logits in float32. Ids and ranks are equal to its own; the sum of exponentials is
taken in another order, so log-probabilities may differ in the last bits.

Shape letters: N entries, V vocabulary, C entries that want them, X blocks, T tiles of blocks, K most likely tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.row_parts import BLOCK, key_of, largest_key_with, list_blocks, read

_TILE = 64
_SPAN = tl.constexpr(32)
MOST = tl.constexpr(32)
"""Most likely tokens of one row, at most."""
_LISTED = tl.constexpr(64)
"""Blocks that may hold them: fewer than MOST above the MOST-th largest maximum, and as many that equal it."""
_HELD = tl.constexpr(2048)
"""Logits above the K-th largest block maximum lie in fewer than MOST blocks; of those that equal it, K are enough."""
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def look(
    logits, tokens, wanted, maxima, tile_maxima, tile_sums, tile_ranks, vocab, blocks, tiles,
    TILE: tl.constexpr,
):  # fmt: skip
    """Of TILE blocks of a row: maxima, the sum of exponentials below their largest, how many exceed the chosen token."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.load(wanted + row)
    logits += entry * vocab
    chosen = tl.load(logits + tl.maximum(tl.load(tokens + entry), 0))
    x_T = tl.program_id(1) * TILE + tl.arange(0, TILE)
    v_TB = x_T[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x_TB = read(logits, tokens, -1, v_TB, vocab, 0, False)
    max_T = tl.max(x_TB, 1)
    largest = tl.max(max_T, 0)
    # A tile of -inf alone, or one with +inf, must not make NaN of the whole row's sum by itself.
    base = tl.where(tl.abs(largest) == _INFINITY, 0.0, largest)
    exceeds_T = tl.sum(((x_TB > chosen) & (v_TB < vocab)).to(tl.int32), 1)
    place = row * tiles + tl.program_id(1)
    tl.store(maxima + row * blocks + x_T, max_T, mask=x_T < blocks)
    tl.store(tile_maxima + place, largest)
    tl.store(tile_sums + place, tl.sum(tl.sum(tl.exp(x_TB - base), 1), 0))
    tl.store(tile_ranks + place, tl.sum(exceeds_T, 0))


@triton.jit
def _hold(logits, vocab, listed, num_listed, least, wanted, values, ids):
    """Gather logits above `least`, and the first `wanted` that equal it; how many."""
    count = tl.zeros([], tl.int32)
    equals = tl.zeros([], tl.int32)
    for start in range(0, num_listed, _SPAN):
        at_S = start + tl.arange(0, _SPAN)
        block_S = tl.load(listed + at_S, mask=at_S < num_listed, other=0)
        v_SB = block_S[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        v_E = tl.reshape(tl.where((at_S < num_listed)[:, None], v_SB, vocab), [_SPAN * BLOCK])
        x_E = read(logits, listed, -1, v_E, vocab, 0, False)
        key_E = tl.where(v_E < vocab, key_of(x_E), -1)
        is_equal_E = (key_E == least).to(tl.int32)
        is_first_E = (is_equal_E != 0) & (equals + tl.cumsum(is_equal_E, 0) <= wanted)
        is_held_E = ((key_E > least) | is_first_E).to(tl.int32)
        place_E = count + tl.cumsum(is_held_E, 0) - 1
        is_stored_E = (is_held_E != 0) & (place_E < _HELD)
        tl.store(values + place_E, x_E, mask=is_stored_E)
        tl.store(ids + place_E, v_E, mask=is_stored_E)
        count += tl.sum(is_held_E, 0)
        equals += tl.sum(is_equal_E, 0)
    return tl.minimum(count, _HELD)


@triton.jit(do_not_specialize=["columns"])
def settle(
    logits, tokens, wanted, num_top, maxima, tile_maxima, tile_sums, tile_ranks, listed, values,
    ids, out_ids, out_logprobs, vocab, blocks, tiles, columns,
    X: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The row's log-probabilities and rank: the chosen token first, then the most likely by logit, then by id."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.load(wanted + row)
    logits += entry * vocab
    t_T = tl.arange(0, T)
    max_T = tl.load(tile_maxima + row * tiles + t_T, mask=t_T < tiles, other=-_INFINITY)
    sum_T = tl.load(tile_sums + row * tiles + t_T, mask=t_T < tiles, other=0)
    rank_T = tl.load(tile_ranks + row * tiles + t_T, mask=t_T < tiles, other=0)
    largest = tl.max(max_T, 0)
    scaled_T = tl.where(max_T == -_INFINITY, 0.0, sum_T * tl.exp(max_T - largest))
    log_sum = tl.log(tl.sum(scaled_T, 0))
    log_sum = tl.where(tl.abs(largest) == _INFINITY, float("nan"), log_sum)
    token = tl.maximum(tl.load(tokens + entry), 0)
    out_ids += row * columns
    out_logprobs += row * columns
    tl.store(out_ids, tl.sum(rank_T, 0).to(tl.int64) + 1)
    tl.store(out_ids + 1, token)
    tl.store(out_logprobs, tl.load(logits + token) - largest - log_sum)
    count = tl.load(num_top + row)
    if count > 0:
        x_X = tl.arange(0, X)
        max_X = tl.load(maxima + row * blocks + x_X, mask=x_X < blocks, other=-_INFINITY)
        key_X = tl.where(x_X < blocks, key_of(max_X), -1)
        least = largest_key_with(key_X, tl.full([X], 1, tl.int64), count)
        is_equal_X = (key_X == least).to(tl.int32)
        is_listed_X = (key_X > least) | ((is_equal_X != 0) & (tl.cumsum(is_equal_X, 0) <= count))
        # With fewer blocks than wanted all are listed.
        is_listed_X = tl.where(blocks < count, x_X < blocks, is_listed_X)
        num_listed = list_blocks(listed + row * _LISTED, is_listed_X, X, _LISTED)
        tl.debug_barrier()
        values += row * _HELD
        ids += row * _HELD
        held = _hold(
            logits, vocab, listed + row * _LISTED, num_listed, least, count, values, ids
        )  # fmt: skip
        tl.debug_barrier()
        c_C = tl.arange(0, _HELD)
        x_C = tl.load(values + c_C, mask=c_C < held, other=-_INFINITY)
        id_C = tl.load(ids + c_C, mask=c_C < held, other=0)
        key_C = tl.where(c_C < held, key_of(x_C), -1)
        for place in range(count):
            best = tl.max(key_C, 0)
            first = tl.min(tl.where(key_C == best, c_C, _HELD), 0)
            value = tl.sum(tl.where(c_C == first, x_C, 0.0), 0)
            tl.store(out_ids + 2 + place, tl.sum(tl.where(c_C == first, id_C, 0), 0).to(tl.int64))
            tl.store(out_logprobs + 1 + place, value - largest - log_sum)
            key_C = tl.where(c_C == first, -1, key_C)


def token_logprobs(
    logits_NV: torch.Tensor,
    tokens_N: torch.Tensor,
    wanted_C: torch.Tensor,
    num_top_C: torch.Tensor,
    most: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of entries `wanted_C` (int64): ids int64 [C, 2 + most], rank, token, most likely; float32 [C, 1 + most] beside the
    tokens, all on the device. Columns past an entry's own `num_top_C` (int64, at most `most`) hold nothing.

    Args:
        logits_NV: raw, float32, contiguous.
        tokens_N: int64; where one is negative, what is said of it means nothing.
        wanted_C: which entries.
        num_top_C: how many most likely tokens each wants, at most V.
        most: the largest of `num_top_C`, at most `MOST`.
    """
    assert most <= MOST.value, most
    count, vocab = len(wanted_C), logits_NV.shape[1]
    columns = 2 + most
    device = logits_NV.device
    out_ids = torch.zeros(count, columns, dtype=torch.int64, device=device)
    out_logprobs = torch.zeros(count, columns, dtype=torch.float32, device=device)
    blocks = triton.cdiv(vocab, 64)
    tiles = triton.cdiv(blocks, _TILE)
    maxima = torch.empty(count, blocks, device=device)
    tile_maxima, tile_sums = torch.empty(2, count, tiles, device=device)
    tile_ranks = torch.empty(count, tiles, dtype=torch.int32, device=device)
    look[(count, tiles)](
        logits_NV, tokens_N, wanted_C, maxima, tile_maxima, tile_sums, tile_ranks, vocab, blocks,
        tiles, TILE=_TILE, num_warps=4,
    )  # fmt: skip
    listed = torch.empty(count * _LISTED.value, dtype=torch.int32, device=device)
    values = torch.empty(count * _HELD.value, device=device)
    ids = torch.empty(count * _HELD.value, dtype=torch.int32, device=device)
    settle[(count,)](
        logits_NV, tokens_N, wanted_C, num_top_C, maxima, tile_maxima, tile_sums, tile_ranks,
        listed, values, ids, out_ids, out_logprobs, vocab, blocks, tiles, columns,
        X=triton.next_power_of_2(blocks), T=triton.next_power_of_2(tiles), num_warps=8,
    )  # fmt: skip
    return out_ids, out_logprobs[:, : 1 + most]
