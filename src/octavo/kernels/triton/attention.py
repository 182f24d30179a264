"""Paged attention for chunks and decodes in one launch, and the merging of contexts that were split.

An item of work is a tile of queries (several tokens, all the query heads that share a key/value head) over a range of
keys. Programs take items by their number, so that a grid of any size does all of them: as many programs as items, or a
number that never changes while the items in memory do, which is what a captured graph needs.

A range that is not all of a tile's context leaves a partial result: unscaled sums, maxima and sums of weights, float32.
`merge` folds those of a token in the order of their keys. Within an item spans are folded by the same formula
(`_fold`), so that it makes no difference to any bit whether spans of one size were items of their own.

Shape letters: M rows of a tile, N keys of a step of the loop, D head dim, padded to a power of two.
"""

import triton
import triton.language as tl

from octavo.kernels.triton.shared import dot, widen

ITEM = tl.constexpr(8)
"""Words of an item: row of the tables, first token, tokens, position of the first, first key, key behind the last,
first row of its partial result or -1, nothing."""
MERGE = tl.constexpr(4)
"""Words of a merge: token, first row, rows from one partial result to the next, how many there are."""
BLOCK_SIZE = tl.constexpr(16)
_TWO_LOG2E = tl.constexpr(2.8853900817779268)


@triton.jit
def _fold(m_M, l_M, acc_MD, next_m_M, next_l_M, next_acc_MD):
    """One softmax over two ranges of keys. Folding nothing, on either side, leaves the other as it is, to the bit."""
    top_M = tl.maximum(m_M, next_m_M)
    safe_M = tl.where(top_M == float("-inf"), 0.0, top_M)
    kept_M, added_M = tl.exp2(m_M - safe_M), tl.exp2(next_m_M - safe_M)
    # Written as multiply-adds: left to the compiler, two kernels might contract it in two ways.
    l_M = tl.fma(next_l_M, added_M, l_M * kept_M)
    added_MD = tl.broadcast_to(added_M[:, None], acc_MD.shape)
    acc_MD = tl.fma(next_acc_MD, added_MD, acc_MD * kept_M[:, None])
    return top_M, l_M, acc_MD


@triton.jit
def _attend_range(
    m_M,
    l_M,
    acc_MD,
    q_MD,
    position_M,
    k,
    v,
    k_scales,
    v_scales,
    table,
    head,
    begin,
    end,
    last_key,
    score_scale,
    cap_scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    AHEAD: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Keys `begin` to `end`, in steps of N, onto what there is of a softmax. Keys from `last_key` on are not there."""
    key_N, feature_D = tl.arange(0, N), tl.arange(0, PADDED)
    is_feature_D = feature_D < DIM
    for first in tl.range(begin, end, N, num_stages=STAGES):
        at_N = first + key_N
        there_N = at_N < last_key
        block_N = tl.load(table + at_N // BLOCK_SIZE, mask=there_N, other=0).to(tl.int64)
        row_N = (block_N * BLOCK_SIZE + at_N % BLOCK_SIZE) * HEADS + head
        place_ND = row_N[:, None] * DIM + feature_D[None, :]
        is_there_ND = there_N[:, None] & is_feature_D[None, :]
        k_ND = widen(tl.load(k + place_ND, mask=is_there_ND, other=0.0), q_MD)
        v_ND = widen(tl.load(v + place_ND, mask=is_there_ND, other=0.0), q_MD)
        score_MN = dot(q_MD, tl.trans(k_ND), tl.zeros([M, N], tl.float32), PRECISION)
        if HAS_SCALES:
            score_MN *= tl.load(k_scales + row_N, mask=there_N, other=0.0)[None, :]
        score_MN *= score_scale
        if HAS_CAP:  # tanh; infinite powers of two give 1
            score_MN = cap_scale * (1.0 - 2.0 / (tl.exp2(score_MN * _TWO_LOG2E) + 1.0))
        if IS_MASKED:
            seen_MN = there_N[None, :] & (at_N[None, :] <= position_M[:, None] + AHEAD)
            if WINDOW > 0:
                seen_MN &= at_N[None, :] > position_M[:, None] - WINDOW
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        top_M = tl.maximum(m_M, tl.max(score_MN, 1))
        safe_M = tl.where(top_M == float("-inf"), 0.0, top_M)
        weight_MN = tl.exp2(score_MN - safe_M[:, None])
        kept_M = tl.exp2(m_M - safe_M)
        l_M = tl.fma(l_M, kept_M, tl.sum(weight_MN, 1))
        if HAS_SCALES:
            weight_MN *= tl.load(v_scales + row_N, mask=there_N, other=0.0)[None, :]
        acc_MD = acc_MD * kept_M[:, None]
        acc_MD = dot(weight_MN.to(q_MD.dtype), v_ND, acc_MD, PRECISION)
        m_M = top_M
    return m_M, l_M, acc_MD


@triton.jit
def _attend_span(
    q_MD,
    position_M,
    k,
    v,
    k_scales,
    v_scales,
    table,
    head,
    begin,
    end,
    unmasked_end,
    score_scale,
    cap_scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WINDOW: tl.constexpr,
    AHEAD: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    ALWAYS_MASKED: tl.constexpr,
):
    """A softmax over keys `begin` to `end`: all that every row sees without a mask, then the rest with one.

    With and without a mask the compiler contracts to multiply-adds differently; ALWAYS_MASKED leaves one way, so that a
    row's bits do not depend on its tile.
    """
    m_M = tl.full([M], float("-inf"), tl.float32)
    l_M = tl.zeros([M], tl.float32)
    acc_MD = tl.zeros([M, PADDED], tl.float32)
    middle = begin
    if not ALWAYS_MASKED and WINDOW == 0:
        middle = tl.maximum(begin, tl.minimum(end, unmasked_end) // N * N)
        m_M, l_M, acc_MD = _attend_range(
            m_M, l_M, acc_MD, q_MD, position_M, k, v, k_scales, v_scales, table, head,
            begin, middle, end, score_scale, cap_scale,
            HEADS, DIM, PADDED, M, N, WINDOW, AHEAD, HAS_CAP, HAS_SCALES, False, PRECISION, STAGES,
        )  # fmt: skip
    return _attend_range(
        m_M, l_M, acc_MD, q_MD, position_M, k, v, k_scales, v_scales, table, head,
        middle, end, end, score_scale, cap_scale,
        HEADS, DIM, PADDED, M, N, WINDOW, AHEAD, HAS_CAP, HAS_SCALES, True, PRECISION, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_width", "num_partials"])
def attend(
    q,
    k,
    v,
    k_scales,
    v_scales,
    out,
    tables,
    counts,
    items,
    partials,
    stats,
    table_width,
    num_partials,
    score_scale,
    cap_scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOW: tl.constexpr,
    AHEAD: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All items of a step.

    q and out [T, HEADS * GROUP, DIM]; k and v [num_blocks, 16, HEADS, DIM], their scales one axis less; tables int32
    [S, table_width]; counts int32: how many items, how many merges. `partials` [HEADS, num_partials, DIM] and `stats`
    [HEADS, num_partials, 2] are where partial results go. WINDOW 0 is none. With SPAN, a softmax begins at every
    multiple of it.
    """
    row_M, feature_D = tl.arange(0, M), tl.arange(0, PADDED)
    for index in tl.range(tl.program_id(0), tl.load(counts) * HEADS, tl.num_programs(0)):
        head = index % HEADS
        item = items + (index // HEADS) * ITEM
        table = tables + tl.load(item).to(tl.int64) * table_width
        first_token, num_tokens = tl.load(item + 1), tl.load(item + 2)
        first_position = tl.load(item + 3)
        begin, end, partial = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
        is_row_MD = (row_M < num_tokens * GROUP)[:, None] & (feature_D < DIM)[None, :]
        token_M = first_token + row_M // GROUP
        q_row_M = (token_M.to(tl.int64) * HEADS + head) * GROUP + row_M % GROUP
        q_place_MD = q_row_M[:, None] * DIM + feature_D[None, :]
        q_MD = tl.load(q + q_place_MD, mask=is_row_MD, other=0.0)
        position_M = first_position + row_M // GROUP
        unmasked_end = first_position + AHEAD + 1
        if SPAN > 0:
            m_M = tl.full([M], float("-inf"), tl.float32)
            l_M = tl.zeros([M], tl.float32)
            acc_MD = tl.zeros([M, PADDED], tl.float32)
            for span in tl.range(begin // SPAN * SPAN, end, SPAN):
                next_m_M, next_l_M, next_acc_MD = _attend_span(
                    q_MD, position_M, k, v, k_scales, v_scales, table, head,
                    tl.maximum(begin, span), tl.minimum(end, span + SPAN), unmasked_end,
                    score_scale, cap_scale, HEADS, DIM, PADDED, M, N,
                    WINDOW, AHEAD, HAS_CAP, HAS_SCALES, PRECISION, STAGES, True,
                )  # fmt: skip
                m_M, l_M, acc_MD = _fold(m_M, l_M, acc_MD, next_m_M, next_l_M, next_acc_MD)
        else:
            m_M, l_M, acc_MD = _attend_span(
                q_MD, position_M, k, v, k_scales, v_scales, table, head, begin, end, unmasked_end,
                score_scale, cap_scale, HEADS, DIM, PADDED, M, N,
                WINDOW, AHEAD, HAS_CAP, HAS_SCALES, PRECISION, STAGES, False,
            )  # fmt: skip
        if partial < 0:
            out_MD = (acc_MD / tl.where(l_M > 0, l_M, 1.0)[:, None]).to(out.dtype.element_ty)
            tl.store(out + q_place_MD, out_MD, mask=is_row_MD)
        else:
            left_M = head.to(tl.int64) * num_partials + partial + row_M
            tl.store(partials + left_M[:, None] * DIM + feature_D[None, :], acc_MD, mask=is_row_MD)
            is_row_M = row_M < num_tokens * GROUP
            tl.store(stats + left_M * 2, m_M, mask=is_row_M)
            tl.store(stats + left_M * 2 + 1, l_M, mask=is_row_M)


@triton.jit(do_not_specialize=["num_partials"])
def merge(
    partials,
    stats,
    out,
    counts,
    merges,
    num_partials,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    M: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Fold the partial results of the tokens that have some, in order, and write their outputs.

    Sequential, so that the order is that of spans within an item; UNROLL partial results are on their way at once.
    """
    row_M, feature_D = tl.arange(0, M), tl.arange(0, PADDED)
    is_row_M = row_M < GROUP
    is_row_MD = is_row_M[:, None] & (feature_D < DIM)[None, :]
    for index in tl.range(tl.program_id(0), tl.load(counts + 1) * HEADS, tl.num_programs(0)):
        head = index % HEADS
        one = merges + (index // HEADS) * MERGE
        token, first = tl.load(one), tl.load(one + 1)
        stride, count = tl.load(one + 2), tl.load(one + 3)
        m_M = tl.full([M], float("-inf"), tl.float32)
        l_M = tl.zeros([M], tl.float32)
        acc_MD = tl.zeros([M, PADDED], tl.float32)
        for part in tl.range(0, count, UNROLL):
            for i in tl.static_range(UNROLL):
                is_there_M = is_row_M & (part + i + tl.zeros_like(row_M) < count)
                left_M = head.to(tl.int64) * num_partials + first + (part + i) * stride + row_M
                next_m_M = tl.load(stats + left_M * 2, mask=is_there_M, other=float("-inf"))
                next_l_M = tl.load(stats + left_M * 2 + 1, mask=is_there_M, other=0.0)
                place_MD = left_M[:, None] * DIM + feature_D[None, :]
                is_there_MD = is_there_M[:, None] & (feature_D < DIM)[None, :]
                next_acc_MD = tl.load(partials + place_MD, mask=is_there_MD, other=0.0)
                m_M, l_M, acc_MD = _fold(m_M, l_M, acc_MD, next_m_M, next_l_M, next_acc_MD)
        row_in_out_M = (token.to(tl.int64) * HEADS + head) * GROUP + row_M
        out_MD = (acc_MD / tl.where(l_M > 0, l_M, 1.0)[:, None]).to(out.dtype.element_ty)
        tl.store(out + row_in_out_M[:, None] * DIM + feature_D[None, :], out_MD, mask=is_row_MD)
