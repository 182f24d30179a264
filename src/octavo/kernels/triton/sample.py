"""Tokens of a step, chosen on the device: the rules of `decoding/draw.py`, without a sort and without a look from the host.

Several programs take a row's logits first and leave the largest of each block (and its weight, for rows that need the
mass of all); then one program per row decides. A greedy row and one without top_k and top_p need one block more. The
others gather what is not below the k-th largest block maximum: at least k logits, usually few more. Who is not settled by
that, because of ties or a flat distribution, is searched as a whole, bit by bit of the logit.

Probabilities are fixed-point integers whose sums are exact in any order, so a token depends on nothing but its row.

Shape letters: N entries, V vocabulary, X blocks, T tiles of blocks, M masks, W words of 32 tokens, C candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.row_parts import (
    BLOCK,
    NO_TOKEN,
    PENDING,
    goal_of,
    key_of,
    largest_key_with,
    list_blocks,
    read,
    target_of,
    uniform,
    weigh,
)

_FIRST = tl.constexpr(512)
"""Blocks whose maxima a first look at a row without top_k takes."""
_MOST_BLOCKS = tl.constexpr(1024)
_MOST = tl.constexpr(2048)
"""Candidates of a first look; a row with more is searched as a whole."""
_INFINITY = tl.constexpr(float("inf"))
COLUMNS = 8
"""Of the table: top_p (bits of float64), top_k, seed, index, position, temperature and log_min_p (bits of float64), mask."""


@triton.jit
def _parameter(table, column, entries):
    return tl.load(table + column * entries + tl.program_id(0))


@triton.jit
def _float_parameter(table, column, entries):
    return tl.load(table + column * entries + tl.program_id(0)).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["entries"])
def block_maxima(
    logits, words, table, maxima, tile_maxima, vocab, num_words, entries, blocks, tiles,
    HAS_MASKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Maxima [N, X] of blocks and [N, T] of TILE blocks; +inf where something is NaN."""
    row = tl.program_id(0).to(tl.int64)
    mask = _parameter(table, 7, entries)
    x_T = tl.program_id(1) * TILE + tl.arange(0, TILE)
    v_TB = x_T[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x_TB = read(logits + row * vocab, words, mask, v_TB, vocab, num_words, HAS_MASKS)
    max_T = tl.max(x_TB, 1)
    tl.store(maxima + row * blocks + x_T, max_T, mask=x_T < blocks)
    tl.store(tile_maxima + row * tiles + tl.program_id(1), tl.max(max_T, 0))


@triton.jit(do_not_specialize=["entries"])
def block_sums(
    logits, words, table, tile_maxima, sums, vocab, num_words, entries, blocks, tiles,
    HAS_MASKS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Weights int64 [N, X] of blocks, of rows that need the mass of all: random ones without top_k."""
    row = tl.program_id(0).to(tl.int64)
    temperature = _float_parameter(table, 5, entries).to(tl.float32)
    t_T = tl.arange(0, TILES)
    max_T = tl.load(tile_maxima + row * tiles + t_T, mask=t_T < tiles, other=-_INFINITY)
    largest = tl.max(max_T, 0)
    top_k = _parameter(table, 1, entries)
    if (temperature != 0) & (top_k >= vocab) & (tl.abs(largest) < _INFINITY):
        log_min_p = _float_parameter(table, 6, entries).to(tl.float32)
        mask = _parameter(table, 7, entries)
        x_T = tl.program_id(1) * TILE + tl.arange(0, TILE)
        v_TB = x_T[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        x_TB = read(logits + row * vocab, words, mask, v_TB, vocab, num_words, HAS_MASKS)
        sum_T = tl.sum(weigh(x_TB, largest, temperature, log_min_p), 1)
        tl.store(sums + row * blocks + x_T, sum_T, mask=x_T < blocks)


@triton.jit(do_not_specialize=["entries"])
def choose(
    logits, words, table, maxima, sums, tokens, vocab, num_words, entries, blocks,
    HAS_MASKS: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """Tokens of rows that are greedy or have neither top_k nor top_p; NO_TOKEN, or PENDING for the others."""
    row = tl.program_id(0).to(tl.int64)
    temperature = _float_parameter(table, 5, entries).to(tl.float32)
    mask = _parameter(table, 7, entries)
    top_k = _parameter(table, 1, entries)
    top_p = _float_parameter(table, 0, entries)
    x_X = tl.arange(0, X)
    max_X = tl.load(maxima + row * blocks + x_X, mask=x_X < blocks, other=-_INFINITY)
    largest = tl.max(max_X, 0)
    token = tl.full([], PENDING, tl.int64)
    if tl.abs(largest) == _INFINITY:
        token = tl.full([], NO_TOKEN, tl.int64)
    elif temperature == 0:
        block = tl.min(tl.where(max_X == largest, x_X, X), 0)
        v_B = block * BLOCK + tl.arange(0, BLOCK)
        x_B = read(logits + row * vocab, words, mask, v_B, vocab, num_words, HAS_MASKS)
        token = tl.min(tl.where(x_B == largest, v_B, vocab), 0).to(tl.int64)
    elif (top_k >= vocab) & (top_p >= 1.0):
        log_min_p = _float_parameter(table, 6, entries).to(tl.float32)
        seed = _parameter(table, 2, entries)
        number = uniform(seed, _parameter(table, 3, entries), _parameter(table, 4, entries))
        sum_X = tl.load(sums + row * blocks + x_X, mask=x_X < blocks, other=0)
        target = target_of(tl.sum(sum_X, 0), number)
        block = tl.minimum(tl.sum((tl.cumsum(sum_X, 0) <= target).to(tl.int32), 0), blocks - 1)
        left = target - tl.sum(tl.where(x_X < block, sum_X, 0), 0)
        v_B = block * BLOCK + tl.arange(0, BLOCK)
        x_B = read(logits + row * vocab, words, mask, v_B, vocab, num_words, HAS_MASKS)
        upto_B = tl.cumsum(weigh(x_B, largest, temperature, log_min_p), 0)
        place = tl.sum((upto_B <= left).to(tl.int32), 0)
        token = tl.minimum(block * BLOCK + place, vocab - 1).to(tl.int64)
    tl.store(tokens + row, token)


@triton.jit
def _gather(
    logits, words, mask, vocab, num_words, listed, num_listed, least, values, ids,
    HAS_MASKS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Write logits whose keys are not below `least`, of the listed blocks, with their ids, in the order of ids; how many."""
    count = tl.zeros([], tl.int32)
    for start in range(0, num_listed, SPAN):
        at_S = start + tl.arange(0, SPAN)
        block_S = tl.load(listed + at_S, mask=at_S < num_listed, other=vocab)
        v_SB = block_S[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        v_SB = tl.where((at_S < num_listed)[:, None], v_SB, vocab)
        v_E = tl.reshape(v_SB, [SPAN * BLOCK])
        x_E = read(logits, words, mask, v_E, vocab, num_words, HAS_MASKS)
        is_kept_E = ((v_E < vocab) & (key_of(x_E) >= least)).to(tl.int32)
        place_E = count + tl.cumsum(is_kept_E, 0) - 1
        is_stored_E = (is_kept_E != 0) & (place_E < _MOST)
        tl.store(values + place_E, x_E, mask=is_stored_E)
        tl.store(ids + place_E, v_E, mask=is_stored_E)
        count += tl.sum(is_kept_E, 0)
    return count


@triton.jit(do_not_specialize=["entries"])
def choose_of_largest(
    logits, words, table, maxima, sums, tokens, listed, values, ids,
    vocab, num_words, entries, blocks,
    HAS_MASKS: tl.constexpr, X: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Tokens of PENDING rows that a first look at the largest logits settles."""
    row = tl.program_id(0).to(tl.int64)
    top_k = _parameter(table, 1, entries)
    has_top_k = top_k < vocab
    if (tl.load(tokens + row) == PENDING) & ((top_k <= _MOST_BLOCKS) | (top_k >= vocab)):
        x_X = tl.arange(0, X)
        max_X = tl.load(maxima + row * blocks + x_X, mask=x_X < blocks, other=-_INFINITY)
        largest = tl.max(max_X, 0)
        key_X = tl.where(x_X < blocks, key_of(max_X), -1)
        wanted = tl.where(has_top_k, top_k, _FIRST)
        least = largest_key_with(key_X, tl.full([X], 1, tl.int64), wanted)
        listed += row * _MOST_BLOCKS
        values += row * _MOST
        ids += row * _MOST
        num_listed = list_blocks(listed, key_X >= least, X, _MOST_BLOCKS)
        tl.debug_barrier()
        if num_listed <= _MOST_BLOCKS:
            mask = _parameter(table, 7, entries)
            count = _gather(
                logits + row * vocab, words, mask, vocab, num_words, listed, num_listed, least,
                values, ids, HAS_MASKS, SPAN,
            )  # fmt: skip
            tl.debug_barrier()
            if count <= _MOST:
                # Where there is a top_k nobody has summed.
                num_summed = tl.where(has_top_k, 0, blocks)
                sum_X = tl.load(sums + row * blocks + x_X, mask=x_X < num_summed, other=0)
                _draw(table, tokens, values, ids, count, largest, tl.sum(sum_X, 0), vocab, entries)


@triton.jit
def _draw(table, tokens, values, ids, count, largest, mass, vocab, entries):
    """Choose from `count` candidates in the order of ids, unless what is kept may hold more than them."""
    top_k = _parameter(table, 1, entries)
    has_top_k = top_k < vocab
    temperature = _float_parameter(table, 5, entries).to(tl.float32)
    log_min_p = _float_parameter(table, 6, entries).to(tl.float32)
    c_C = tl.arange(0, _MOST)
    x_C = tl.load(values + c_C, mask=c_C < count, other=-_INFINITY)
    key_C = tl.where(c_C < count, key_of(x_C), -1)
    kth = tl.zeros([], tl.int64)
    if has_top_k:
        kth = largest_key_with(key_C, tl.full([_MOST], 1, tl.int64), top_k)
    is_kept_C = (c_C < count) & (key_C >= kth)
    weight_C = tl.where(is_kept_C, weigh(x_C, largest, temperature, log_min_p), 0)
    held = tl.sum(weight_C, 0)
    goal = goal_of(tl.where(has_top_k, held, mass), _float_parameter(table, 0, entries))
    if held >= goal:
        floor = largest_key_with(key_C, weight_C, goal)
        weight_C = tl.where(key_C >= floor, weight_C, 0)
        seed = _parameter(table, 2, entries)
        number = uniform(seed, _parameter(table, 3, entries), _parameter(table, 4, entries))
        target = target_of(tl.sum(weight_C, 0), number)
        place = tl.sum((tl.cumsum(weight_C, 0) <= target).to(tl.int32), 0)
        token = tl.load(ids + tl.minimum(place, count - 1)).to(tl.int64)
        tl.store(tokens + tl.program_id(0), token)


@triton.jit
def _reached(
    logits, words, mask, vocab, num_words, least, largest, temperature, log_min_p,
    COUNTS: tl.constexpr, HAS_MASKS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """int64: the weight of a row's logits whose keys are not below `least`, or how many there are."""
    sum_E = tl.zeros([SPAN], tl.int64)
    for start in range(0, vocab, SPAN):
        v_E = start + tl.arange(0, SPAN)
        x_E = read(logits, words, mask, v_E, vocab, num_words, HAS_MASKS)
        is_kept_E = (v_E < vocab) & (key_of(x_E) >= least)
        if COUNTS:
            sum_E += is_kept_E.to(tl.int64)
        else:
            sum_E += tl.where(is_kept_E, weigh(x_E, largest, temperature, log_min_p), 0)
    return tl.sum(sum_E, 0)


@triton.jit
def _search(
    logits, words, mask, vocab, num_words, lowest, goal, largest, temperature, log_min_p,
    COUNTS: tl.constexpr, HAS_MASKS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """As `largest_key_with` over a whole row, of keys from `lowest` on."""
    found = tl.zeros_like(goal)
    for bit in range(32):
        tried = found + (tl.full([], 2147483648, tl.int64) >> bit)
        reached = _reached(
            logits, words, mask, vocab, num_words, tl.maximum(tried, lowest),
            largest, temperature, log_min_p, COUNTS, HAS_MASKS, SPAN,
        )  # fmt: skip
        found = tl.where(reached >= goal, tried, found)
    return found


@triton.jit(do_not_specialize=["entries"])
def choose_of_all(
    logits, words, table, maxima, tokens, vocab, num_words, entries, blocks,
    HAS_MASKS: tl.constexpr, X: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Tokens of rows that are still PENDING: the same search over the whole row, which is read some 60 times."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(tokens + row) == PENDING:
        logits += row * vocab
        x_X = tl.arange(0, X)
        max_X = tl.load(maxima + row * blocks + x_X, mask=x_X < blocks, other=-_INFINITY)
        largest = tl.max(max_X, 0)
        temperature = _float_parameter(table, 5, entries).to(tl.float32)
        log_min_p = _float_parameter(table, 6, entries).to(tl.float32)
        mask = _parameter(table, 7, entries)
        top_k = _parameter(table, 1, entries)
        least = tl.zeros([], tl.int64)
        if top_k < vocab:
            least = _search(
                logits, words, mask, vocab, num_words, least, top_k, largest, temperature,
                log_min_p, True, HAS_MASKS, SPAN,
            )  # fmt: skip
        mass = _reached(
            logits, words, mask, vocab, num_words, least, largest, temperature, log_min_p,
            False, HAS_MASKS, SPAN,
        )  # fmt: skip
        goal = goal_of(mass, _float_parameter(table, 0, entries))
        floor = _search(
            logits, words, mask, vocab, num_words, least, goal, largest, temperature, log_min_p,
            False, HAS_MASKS, SPAN,
        )  # fmt: skip
        floor = tl.maximum(floor, least)
        total = _reached(
            logits, words, mask, vocab, num_words, floor, largest, temperature, log_min_p,
            False, HAS_MASKS, SPAN,
        )  # fmt: skip
        seed = _parameter(table, 2, entries)
        number = uniform(seed, _parameter(table, 3, entries), _parameter(table, 4, entries))
        target = target_of(total, number)
        before = tl.zeros([], tl.int64)
        place = tl.zeros([], tl.int64)
        for start in range(0, vocab, SPAN):
            v_E = start + tl.arange(0, SPAN)
            x_E = read(logits, words, mask, v_E, vocab, num_words, HAS_MASKS)
            weight_E = weigh(x_E, largest, temperature, log_min_p)
            weight_E = tl.where((v_E < vocab) & (key_of(x_E) >= floor), weight_E, 0)
            upto_E = before + tl.cumsum(weight_E, 0)
            place += tl.sum(((upto_E <= target) & (v_E < vocab)).to(tl.int64), 0)
            before += tl.sum(weight_E, 0)
        tl.store(tokens + row, tl.minimum(place, vocab - 1))


class Kinds(NamedTuple):
    """What a step's entries need, of what not every step does; known to the host before it starts."""

    needs_mass: bool
    """Some are random and have no top_k."""
    is_cut: bool
    """Some are random and have top_k or top_p."""


_TILE = 64
"""Blocks of one program."""
_SPAN = 4096
"""Logits that one program looks at in a turn of a whole row."""


def sample(
    logits_NV: torch.Tensor,
    table_CN: torch.Tensor,
    words_MW: torch.Tensor | None,
    kinds: Kinds,
) -> torch.Tensor:
    """Tokens int64 [N] on the device, without waiting for it; -1 where the largest allowed logit is not finite.

    Args:
        logits_NV: float32, contiguous, V at least 1.
        table_CN: int64, rows as `COLUMNS` says.
        words_MW: int32: bit t % 32 of word t // 32 is set where token t is allowed.
        kinds: which kernels are needed.
    """
    entries, vocab = logits_NV.shape
    tokens_N = torch.empty(entries, dtype=torch.int64, device=logits_NV.device)
    if not entries:
        return tokens_N
    blocks = triton.cdiv(vocab, 64)
    tiles = triton.cdiv(blocks, _TILE)
    size = triton.next_power_of_2(blocks)
    maxima_NX, tile_maxima_NT = _maxima(logits_NV, table_CN, words_MW)
    sums_NX = logits_NV.new_empty((entries, blocks) if kinds.needs_mass else 1, dtype=torch.int64)
    words = table_CN if words_MW is None else words_MW
    num_words = 0 if words_MW is None else words_MW.shape[1]
    common = {"HAS_MASKS": words_MW is not None, "enable_fp_fusion": False}
    if kinds.needs_mass:
        block_sums[(entries, tiles)](
            logits_NV, words, table_CN, tile_maxima_NT, sums_NX, vocab, num_words, entries, blocks,
            tiles, TILE=_TILE, TILES=triton.next_power_of_2(tiles), num_warps=8, **common,
        )  # fmt: skip
    choose[(entries,)](
        logits_NV, words, table_CN, maxima_NX, sums_NX, tokens_N, vocab, num_words, entries, blocks,
        X=size, num_warps=8, **common,
    )  # fmt: skip
    if kinds.is_cut:
        most_blocks, most = _MOST_BLOCKS.value, _MOST.value
        listed = torch.empty(entries * most_blocks, dtype=torch.int32, device=logits_NV.device)
        ids = torch.empty(entries * most, dtype=torch.int32, device=logits_NV.device)
        values = torch.empty(entries * most, dtype=torch.float32, device=logits_NV.device)
        choose_of_largest[(entries,)](
            logits_NV, words, table_CN, maxima_NX, sums_NX, tokens_N, listed, values, ids,
            vocab, num_words, entries, blocks, X=size, SPAN=_SPAN // 64, num_warps=8, **common,
        )  # fmt: skip
        choose_of_all[(entries,)](
            logits_NV, words, table_CN, maxima_NX, tokens_N, vocab, num_words, entries, blocks,
            X=size, SPAN=min(_SPAN, triton.next_power_of_2(vocab)), num_warps=16, **common,
        )  # fmt: skip
    return tokens_N


def finite_rows(logits_NV: torch.Tensor, table_CN: torch.Tensor) -> torch.Tensor:
    """bool [N]: rows whose largest logit is finite, whatever their masks."""
    _, tile_maxima_NT = _maxima(logits_NV, table_CN, None)
    return torch.isfinite(tile_maxima_NT.amax(1))


def _maxima(
    logits_NV: torch.Tensor, table_CN: torch.Tensor, words_MW: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    entries, vocab = logits_NV.shape
    blocks = triton.cdiv(vocab, 64)
    tiles = triton.cdiv(blocks, _TILE)
    maxima_NX, tile_maxima_NT = (
        logits_NV.new_empty(entries, blocks),
        logits_NV.new_empty(entries, tiles),
    )
    block_maxima[(entries, tiles)](
        logits_NV, table_CN if words_MW is None else words_MW, table_CN, maxima_NX, tile_maxima_NT,
        vocab, 0 if words_MW is None else words_MW.shape[1], entries, blocks, tiles,
        HAS_MASKS=words_MW is not None, TILE=_TILE, num_warps=4,
    )  # fmt: skip
    return maxima_NX, tile_maxima_NT
