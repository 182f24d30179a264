"""A pool of KV blocks: who holds each, which hold a known prefix, which to give up first. No torch.

A block is in one of three places: held (reference count above 0), cached (nobody holds it, its content is known by
hash, least recently used goes first) or blank (nobody holds it, content worthless). Block 0 is the null block: it is
in none of them and is never handed out.

Every handing out of a block has a number of its own, the block's epoch: whoever holds a block under another one holds a
block that was freed, or never was theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from octavo.core.kvspec import KVGroup

NULL_BLOCK = 0


class BlockPool:
    """Blocks of one KV group. Owner: `cache.groups.KVCache`. Every operation is O(1) per block."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, "a pool needs the null block and at least one more"
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._epochs = [0] * num_blocks
        self._num_handed_out = 0
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @classmethod
    def for_group(cls, group: KVGroup) -> BlockPool:
        """A pool of the group's size."""
        return cls(group.num_blocks)

    @property
    def num_usable(self) -> int:
        """Blocks that can be held at all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, cached ones included."""
        return len(self._blank) + len(self._cached)

    def references(self, block: int) -> int:
        """How often the block is held."""
        return self._references[block]

    def epoch(self, block: int) -> int:
        """The number of its last handing out, over the whole pool; 0 of the null block."""
        return self._epochs[block]

    def lookup(self, digest: bytes) -> int | None:
        """The block with this content, held or not."""
        return self._block_of.get(digest)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, blank ones first, then the least recently used cached ones.

        The caller has checked `num_free`.
        """
        assert count <= self.num_free, "allocate() without checking num_free"
        taken: list[int] = []
        for _ in range(count):
            block = self._blank.pop() if self._blank else self._evict()
            self._references[block] = 1
            self._num_handed_out += 1
            self._epochs[block] = self._num_handed_out
            taken.append(block)
        return taken

    def find(self, digests: list[bytes]) -> list[int | None]:
        """`lookup` of each."""
        return list(map(self._block_of.get, digests))

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """Of cached and held blocks, how many nobody holds. Null blocks are passed over."""
        held = self._references
        return sum([block != NULL_BLOCK and not held[block] for block in blocks])

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that are cached or held already. Null blocks are passed over."""
        references = self._references
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            if references[block] == 0:
                del self._cached[block]
            references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Let go of blocks, the one to give up first coming first. Null blocks are passed over."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            assert self._references[block] > 0, f"block {block} released more often than held"
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash_of[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Say what a held, full block contains. The first block with a content keeps it."""
        if digest not in self._block_of and self._hash_of[block] is None:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def distrust(self, block: int) -> None:
        """Forget what a held block is said to contain, so that nobody shares it any more."""
        digest = self._hash_of[block]
        if digest is not None:
            del self._block_of[digest]
            self._hash_of[block] = None

    def forget_cached(self) -> int:
        """Drop the content of every block that nobody holds; returns how many there were."""
        count = len(self._cached)
        while self._cached:
            self._blank.append(self._evict())
        return count

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        digest = self._hash_of[block]
        assert digest is not None, "a cached block has a content"
        del self._block_of[digest]
        self._hash_of[block] = None
        return block

    def check(self, held: dict[int, int]) -> list[str]:
        """Compare with `held` (block -> times held, counted from outside); returns what is wrong, [] when nothing is."""
        wrong: list[str] = []
        for block in range(1, self.num_blocks):
            counted = held.get(block, 0)
            if self._references[block] != counted:
                wrong.append(
                    f"block {block}: {self._references[block]} references, {counted} holders"
                )
        places = sorted([*self._blank, *self._cached, *(b for b in held if b != NULL_BLOCK)])
        if places != list(range(1, self.num_blocks)):
            wrong.append("blank + cached + held is not every block exactly once")
        if NULL_BLOCK in held:
            wrong.append("the null block is held")
        for digest, block in self._block_of.items():
            if self._hash_of[block] != digest:
                wrong.append(f"index and block {block} disagree on its hash")
        if any(self._hash_of[block] is None for block in self._cached):
            wrong.append("a cached block has no hash")
        return wrong
