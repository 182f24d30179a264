"""Block tables of sequences over all KV groups: match, admit, extend, publish, slide, release. No torch.

The only writer of `Sequence.blocks`, `.room`, `.hashes` and `.num_published`. A table lists a group's blocks in token order;
where a sliding window has passed, the null block stands in.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

from octavo.cache.blocks import NULL_BLOCK, BlockPool
from octavo.cache.prefix import extend_chain, next_digest, root_digest
from octavo.cache.search import first_visible, leading, longest
from octavo.core.kvspec import BLOCK_SIZE, KVGroup
from octavo.core.sequence import Sequence

_AHEAD = 8
"""Blocks that are hashed at a time, to be looked up."""


class Match(NamedTuple):
    """The longest cached prefix of a sequence."""

    num_tokens: int
    """A multiple of BLOCK_SIZE, less than the sequence's tokens: one at least has to be computed."""
    tables: tuple[tuple[int, ...], ...]
    """Per group: the blocks to share, null where a window has passed."""


class KVCache:
    """Which blocks belong to whom. Owner: the scheduler."""

    def __init__(
        self, groups: tuple[KVGroup, ...], *, enable_prefix_caching: bool = True, revision: str = ""
    ) -> None:
        self.groups = groups
        self.pools = tuple(BlockPool.for_group(group) for group in groups)
        self.enable_prefix_caching = enable_prefix_caching
        self.has_windows = any(group.spec.kind == "window" for group in groups)
        self.num_named = 0
        """Blocks that were hashed so far."""
        self._revision = revision
        self._roots: dict[tuple[str, str | None], bytes] = {}

    @property
    def num_blocks(self) -> int:
        """Usable blocks over all groups."""
        return sum(pool.num_usable for pool in self.pools)

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, over all groups."""
        return sum(pool.num_free for pool in self.pools)

    def looks_up(self, sequence: Sequence) -> bool:
        """Whether the sequence may start from cached blocks; some requests need every position computed."""
        return self.enable_prefix_caching and not sequence.request.needs_every_position

    def match(self, sequence: Sequence) -> Match:
        """Look up the longest prefix whose keys and values every group still has. Takes nothing."""
        empty = Match(0, tuple(() for _ in self.pools))
        if not self.looks_up(sequence):
            return empty
        length = self.reach(sequence) // BLOCK_SIZE
        for group, pool in zip(self.groups, self.pools, strict=True):
            if length and group.spec.kind != "window":
                length = min(length, _gap(pool.find(sequence.hashes[:length])))
        length = longest(zip(self.groups, self.pools, strict=True), sequence.hashes, length)
        if not length:
            return empty
        tables: list[tuple[int, ...]] = []
        for group, pool in zip(self.groups, self.pools, strict=True):
            first = first_visible(group, length * BLOCK_SIZE)
            found = pool.find(sequence.hashes[first:length])
            tables.append((NULL_BLOCK,) * first + tuple([block or NULL_BLOCK for block in found]))
        return Match(length * BLOCK_SIZE, tuple(tables))

    def reach(self, sequence: Sequence) -> int:
        """Tokens that `match` finds, at a fraction of its cost; more only where a chain has lost blocks in its middle.

        Where a group sees everything, what comes after its first gap is of no use: it is neither looked up nor hashed, so
        that long prompts cost what they share, however often they are asked about.
        """
        if not self.looks_up(sequence):
            return 0
        most = (sequence.num_tokens - 1) // BLOCK_SIZE
        if all(group.spec.kind == "window" for group in self.groups):
            self.hash_up_to(sequence, most * BLOCK_SIZE)
        for group, pool in zip(self.groups, self.pools, strict=True):
            if group.spec.kind != "window":
                most = self._leading(sequence, pool, most)
        return (
            longest(zip(self.groups, self.pools, strict=True), sequence.hashes, most) * BLOCK_SIZE
        )

    def _leading(self, sequence: Sequence, pool: BlockPool, most: int) -> int:
        """How many of the first `most` blocks the pool has; a few more are hashed, too."""
        hashes = sequence.hashes
        known = min(most, len(hashes))
        count = leading(pool, hashes, known)
        while count == known and count < most:
            known = min(most, known + _AHEAD)
            self.hash_up_to(sequence, known * BLOCK_SIZE)
            while count < known and pool.lookup(hashes[count]) is not None:
                count += 1
        return count

    def hash_up_to(self, sequence: Sequence, num_tokens: int) -> None:
        """Name the sequence's full blocks within its first `num_tokens` tokens."""
        before = len(sequence.hashes)
        self._extend_names(sequence, num_tokens)
        self.num_named += len(sequence.hashes) - before

    def _extend_names(self, sequence: Sequence, num_tokens: int) -> None:
        key = (sequence.request.cache_scope, sequence.request.adapter)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) > 65_536:
                self._roots.clear()  # a cache of hashes, not of keys and values: costs nothing but time
            root = self._roots[key] = root_digest(key[0], self._revision, key[1])
        extend_chain(sequence.hashes, root, sequence.token_ids, num_tokens)

    def is_alike(self, sequence: Sequence, other: Sequence, index: int) -> bool:
        """Whether both have the same content up to and with block `index`, which `sequence` has named."""
        if other.num_tokens // BLOCK_SIZE <= index:
            return False
        known = min(len(other.hashes), index + 1)
        for at in range(max(0, known - 1), index + 1):  # a name speaks for all before it
            self.hash_up_to(other, (at + 1) * BLOCK_SIZE)
            if other.hashes[at] != sequence.hashes[at]:
                return False
        return True

    def admission_need(self, sequence: Sequence, match: Match, chunk: int) -> list[int]:
        """Free blocks per group that admitting takes: shared ones nobody holds, plus new ones for all known tokens.

        A window group never holds more than its window and one chunk, what it shares included.
        """
        needs: list[int] = []
        for group, pool, table in zip(self.groups, self.pools, match.tables, strict=True):
            revived = pool.num_unheld(table)
            blocks = _num_blocks(sequence.num_tokens) - len(table)
            needs.append(min(revived + blocks, window_blocks(group, chunk)))
        return needs

    def whole_need(self, sequence: Sequence, chunk: int) -> list[int]:
        """Blocks per group that suffice for everything the sequence can become."""
        blocks = _num_blocks(sequence.request.num_prompt + sequence.request.max_tokens)
        return [min(blocks, window_blocks(group, chunk)) for group in self.groups]

    def remaining_need(self, sequence: Sequence, chunk: int) -> list[int]:
        """Of `whole_need`, what the sequence does not hold yet."""
        held = [len(table) - table.count(NULL_BLOCK) for table in sequence.blocks]
        whole = self.whole_need(sequence, chunk)
        return [max(0, most - have) for most, have in zip(whole, held, strict=True)]

    def admit(self, sequence: Sequence, match: Match) -> None:
        """Share the matched blocks and set the sequence to continue after them."""
        for pool, table in zip(self.pools, match.tables, strict=True):
            pool.share(table)
        sequence.blocks = [list(table) for table in match.tables]
        sequence.room = match.num_tokens
        sequence.num_computed = match.num_tokens
        sequence.num_published = match.num_tokens // BLOCK_SIZE

    def missing(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Blocks per group still needed to hold `num_tokens` tokens."""
        return [max(0, _num_blocks(num_tokens) - len(table)) for table in sequence.blocks]

    def extend(self, sequence: Sequence, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """Grow the tables to hold `num_tokens` tokens; returns the new blocks. The caller has checked that there are."""
        grown: list[tuple[int, ...]] = []
        missing = self.missing(sequence, num_tokens)
        for pool, table, count in zip(self.pools, sequence.blocks, missing, strict=True):
            blocks = pool.allocate(count)
            table.extend(blocks)
            grown.append(tuple(blocks))
        # A model that keeps nothing has no tables to fill.
        sequence.room = len(sequence.blocks[0]) * BLOCK_SIZE if sequence.blocks else num_tokens
        return tuple(grown)

    def extend_each(self, sequences: list[Sequence]) -> tuple[list[list[int]], list[list[int]]]:
        """`extend` by one block per group for each, in order: per group the blocks, and their epochs. The caller has checked
        that there are so many.
        """
        new: list[list[int]] = []
        given: list[list[int]] = []
        for at, pool in enumerate(self.pools):
            blocks = pool.allocate(len(sequences))
            for sequence, block in zip(sequences, blocks, strict=True):
                sequence.blocks[at].append(block)
            new.append(blocks)
            given.append([pool.epoch(block) for block in blocks])
        for sequence in sequences:
            sequence.room += BLOCK_SIZE
        return new, given

    def epochs(self, tables: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
        """Beside blocks per group: which handing out of each block this is."""
        return tuple(
            tuple([pool.epoch(block) for block in blocks])
            for pool, blocks in zip(self.pools, tables, strict=True)
        )

    def advance(self, sequence: Sequence) -> None:
        """After `num_computed` grew: `publish` and `slide`."""
        if sequence.num_computed // BLOCK_SIZE > sequence.num_published:
            self.publish(sequence)
        if self.has_windows:
            self.slide(sequence)

    def publish(self, sequence: Sequence) -> None:
        """Offer full blocks that were not offered yet to those who have the same tokens."""
        if not self.enable_prefix_caching:
            return
        full = sequence.num_computed // BLOCK_SIZE
        self.hash_up_to(sequence, sequence.num_computed)
        for index in range(sequence.num_published, full):
            for pool, table in zip(self.pools, sequence.blocks, strict=True):
                if table[index] != NULL_BLOCK:
                    pool.publish(table[index], sequence.hashes[index])
        sequence.num_published = full

    def publish_each(self, sequences: Iterable[Sequence]) -> None:
        """`publish` for each. Those that filled one block more since the last time, as whoever decodes, take a shorter way."""
        if not self.enable_prefix_caching:
            return
        pools = self.pools
        for sequence in sequences:
            hashes, at = sequence.hashes, sequence.num_published
            first = at * BLOCK_SIZE
            if not 0 < at == len(hashes) == sequence.num_computed // BLOCK_SIZE - 1:
                self.publish(sequence)
                continue
            block = array("i", sequence.token_ids[first : first + BLOCK_SIZE])
            digest = next_digest(hashes[-1], block.tobytes())
            hashes.append(digest)
            self.num_named += 1
            sequence.num_published += 1
            for pool, table in zip(pools, sequence.blocks, strict=True):
                if table[at] != NULL_BLOCK:
                    pool.publish(table[at], digest)

    def slide(self, sequence: Sequence) -> None:
        """Let go of what windows no longer see."""
        for group, pool, table in zip(self.groups, self.pools, sequence.blocks, strict=True):
            if group.spec.kind == "window":
                _slide(pool, table, first_visible(group, sequence.num_computed))

    def release(self, sequence: Sequence) -> None:
        """Let go of everything, the end of the chain first so that prefixes outlive their continuations."""
        for pool, table in zip(self.pools, sequence.blocks, strict=True):
            pool.release(reversed(table))
        sequence.blocks = []
        sequence.room = 0
        sequence.num_computed = 0
        sequence.num_published = 0

    def distrust(self, sequence: Sequence) -> None:
        """Let nobody share the sequence's blocks any more: whatever went wrong with it may be in one of them."""
        for pool, table in zip(self.pools, sequence.blocks, strict=True):
            for block in table:
                pool.distrust(block)

    def forget_prefixes(self) -> int:
        """Drop all cached content that nobody holds; returns the number of blocks."""
        return sum(pool.forget_cached() for pool in self.pools)


def window_blocks(group: KVGroup, chunk: int) -> int:
    """Most blocks that one sequence holds in this group when it advances by at most `chunk` tokens a step."""
    if group.spec.kind != "window" or group.spec.window is None:
        return 1 << 62
    return _num_blocks(group.spec.window + chunk) + 1


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _gap(found: list[int | None]) -> int:
    """Index of the first that is missing."""
    return found.index(None) if None in found else len(found)


def _slide(pool: BlockPool, table: list[int], first: int) -> None:
    """Release the blocks before index `first`. Passed blocks form a prefix of nulls, so the search goes backwards."""
    index = min(first, len(table)) - 1
    passed: list[int] = []
    while index >= 0 and table[index] != NULL_BLOCK:
        passed.append(table[index])
        table[index] = NULL_BLOCK
        index -= 1
    pool.release(passed)
