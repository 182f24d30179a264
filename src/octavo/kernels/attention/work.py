"""How a step's attention is cut into items of equal use to a GPU. On the host, from host lists; loads no triton.

An item is a tile of queries over a range of keys; `kernels/triton/attention.py` computes it. Long contexts are split over
several items, and `merges` says whose partial results are folded. Where a slice is cut depends on the slice alone and not
on what else is in the step.

Letters: S slices, A tiles of queries, W items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

ITEM_WORDS = 8
MERGE_WORDS = 4
ALIGNMENT = 64
"""Ranges of keys begin at multiples of it, a multiple of what kernels read in one go."""
MIN_SPLIT = 256
"""Keys of the smallest range that is worth a partial result: its 520 bytes per query head are 1.6 % of the 128 KiB of keys
and values, with four query heads per key/value head of 128 features."""
MAX_SPLITS = 64
"""Of a slice of few tokens: enough programs for a device, and few enough to fold in a row."""
SPAN = 1024
"""Keys that have a softmax of their own, and a range, where rows must not depend on their batch."""
MAX_CHUNK_ITEMS = 32
"""A slice of many tokens has so many tiles that it is split only into this many items."""


class Cut(NamedTuple):
    """What is the same for all steps of a layer."""

    tokens: int
    """Of a tile."""
    group: int
    """Query heads per key/value head; a token has so many rows of a tile."""
    window: int | None
    ahead: int
    split: int = 0
    """Keys of a range of few tokens' slices, the same for all; 0: as suits the slice."""
    least: int = MIN_SPLIT
    """Keys of the smallest range, where they suit the slice."""


class Work(NamedTuple):
    """A step's items."""

    items: IntArray
    """[W, ITEM_WORDS], the largest first."""
    merges: IntArray
    """[tokens with partial results, MERGE_WORDS]."""
    num_partials: int
    """Rows of partial results, per key/value head."""


def lay_out(query_starts: Sequence[int], context_lens: Sequence[int], cut: Cut) -> Work:
    """The work of one step. Slices without tokens have none."""
    starts, len_S = np.array(query_starts, np.int64), np.array(context_lens, np.int64)
    count_S = starts[1:] - starts[:-1]
    tiles_S = -(-count_S // cut.tokens)
    split_S = _splits(count_S, len_S, tiles_S, cut)
    slice_A = np.repeat(np.arange(len(len_S)), tiles_S)
    offset_A = (np.arange(len(slice_A)) - (np.cumsum(tiles_S) - tiles_S)[slice_A]) * cut.tokens
    tokens_A = np.minimum(cut.tokens, count_S[slice_A] - offset_A)
    position_A = len_S[slice_A] - count_S[slice_A] + offset_A
    first_A = starts[:-1][slice_A] + offset_A
    low_A = np.zeros_like(first_A)
    if cut.window is not None:
        low_A = np.maximum(0, position_A - cut.window + 1) // ALIGNMENT * ALIGNMENT
    high_A = np.minimum(len_S[slice_A], position_A + tokens_A + cut.ahead)
    split_A = split_S[slice_A]
    first_range_A = low_A // split_A
    ranges_A = (high_A - 1) // split_A - first_range_A + 1
    tile_W = np.repeat(np.arange(len(slice_A)), ranges_A)
    range_W = np.arange(len(tile_W)) - (np.cumsum(ranges_A) - ranges_A)[tile_W]
    begin_W = (first_range_A[tile_W] + range_W) * split_A[tile_W]
    rows_W = np.where(ranges_A[tile_W] > 1, tokens_A[tile_W] * cut.group, 0)
    partial_W = np.cumsum(rows_W) - rows_W
    items = np.zeros((len(tile_W), ITEM_WORDS), np.int64)
    items[:, 0] = slice_A[tile_W]
    items[:, 1] = first_A[tile_W]
    items[:, 2] = tokens_A[tile_W]
    items[:, 3] = position_A[tile_W]
    items[:, 4] = np.maximum(begin_W, low_A[tile_W])
    items[:, 5] = np.minimum(begin_W + split_A[tile_W], high_A[tile_W])
    items[:, 6] = np.where(rows_W > 0, partial_W, -1)
    merges = _merges(first_A, tokens_A, ranges_A, items[np.cumsum(ranges_A) - ranges_A, 6], cut)
    if len(items) > 1:
        items = items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]
    return Work(items, merges, int(rows_W.sum()))


def lay_out_within(
    query_starts: Sequence[int], context_lens: Sequence[int], cut: Cut, num_items: int
) -> Work:
    """As `lay_out`, with ranges as much longer as it takes to have no more items, if longer ones can do that."""
    work = lay_out(query_starts, context_lens, cut)
    while len(work.items) > num_items and not cut.split and cut.least < max(context_lens):
        cut = cut._replace(least=2 * cut.least)
        work = lay_out(query_starts, context_lens, cut)
    return work


def max_work(num_slices: int, max_len: int, max_tokens: int, cut: Cut) -> tuple[int, int]:
    """The most items, and rows of partial results, of any step of one token for each of `num_slices` sequences, none of
    them longer than `max_len` and all of them together no longer than `max_tokens`.

    Sequences that share a prefix may be longer together than the cache is; `lay_out_within` has an answer, where ranges
    may suit the slice. Where they may not, `max_tokens` counts for nothing.
    """
    split = cut.split or MIN_SPLIT
    most_each = -(-max_len // split)
    if not cut.split:
        most_each = min(most_each, MAX_SPLITS)
    # One more each: a window may cut a range short at its beginning as well as at its end.
    items = num_slices * (most_each + 1)
    if not cut.split:
        items = min(items, 2 * num_slices + max_tokens // split)
    return items, items * cut.group


def _splits(count_S: IntArray, len_S: IntArray, tiles_S: IntArray, cut: Cut) -> IntArray:
    """Keys per range of each slice."""
    if cut.split:
        return np.where(tiles_S > 1, 1 << 40, cut.split)
    most_of_chunk_S = np.maximum(1, MAX_CHUNK_ITEMS // np.maximum(tiles_S, 1))
    most_S = np.where(tiles_S > 1, most_of_chunk_S, MAX_SPLITS)
    least_S = -(-len_S // most_S)
    return np.maximum(cut.least, -(-least_S // ALIGNMENT) * ALIGNMENT)


def _merges(
    first_A: IntArray, tokens_A: IntArray, ranges_A: IntArray, partial_A: IntArray, cut: Cut
) -> IntArray:
    """Of every token of the tiles with more than one range."""
    split_A = np.flatnonzero(ranges_A > 1)
    tile_N = np.repeat(split_A, tokens_A[split_A])
    token_N = np.arange(len(tile_N)) - np.repeat(
        np.cumsum(tokens_A[split_A]) - tokens_A[split_A], tokens_A[split_A]
    )
    merges = np.empty((len(tile_N), MERGE_WORDS), np.int64)
    merges[:, 0] = first_A[tile_N] + token_N
    merges[:, 1] = partial_A[tile_N] + token_N * cut.group
    merges[:, 2] = tokens_A[tile_N] * cut.group
    merges[:, 3] = ranges_A[tile_N]
    return merges
