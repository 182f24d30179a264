"""Who gives way: for want of blocks the cheapest to compute again, for want of a row who has more than a fair share.

Nobody gives way for ever: `limits.MAX_PREEMPTIONS` later it has all it needs reserved and is asked no more.
"""

from __future__ import annotations

import bisect

from octavo.cache.blocks import BlockPool
from octavo.cache.groups import KVCache
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.sequence import Sequence
from octavo.core.steptime import StepTime, attended
from octavo.scheduler.accounts import Account, Accounts

PATIENCE_S = 0.25
"""How long a request waits for a row before one is taken away from an account that has more than its share."""
PAUSE_STEPS = 16
"""Steps between two rows taken away: those who got one show up in the shares first."""


def recompute_s(sequence: Sequence, cache: KVCache, line: StepTime) -> float:
    """Predicted time to compute again what would be lost: all but the leading blocks that others hold, too."""
    kept = len(sequence.blocks[0]) if sequence.blocks else 0
    for pool, table in zip(cache.pools, sequence.blocks, strict=True):
        kept = _num_shared(pool, table, kept)
    start = min(kept * BLOCK_SIZE, sequence.num_computed)
    count = sequence.num_computed - start
    return line.token_s * count + line.context_s * attended(start, count)


def _num_shared(pool: BlockPool, table: list[int], most: int) -> int:
    """Of a table's first `most` blocks, the leading ones that others hold, too: by halving, for who shares a block mostly
    shares those before it.
    """
    return bisect.bisect_left(
        range(most), True, key=lambda index: pool.references(table[index]) < 2
    )


def for_blocks(
    running: list[Sequence],
    reserved: dict[str, Sequence],
    needy: Sequence,
    cache: KVCache,
    accounts: Accounts,
) -> Sequence | None:
    """Who gives its blocks to `needy`, perhaps itself; None when nobody but `needy` may be asked.

    Never the first in order while there are others. Of the account that holds most per weight, so that an account's
    growth is at its own cost; there whoever gave way least often, and of those the cheapest to compute again.
    """
    candidates = [s for s in running if s.id not in reserved]
    if not any(s is not needy for s in candidates):
        return None
    candidates = candidates[1:]  # running is in order
    heaviest, most = None, -1.0
    for sequence in candidates:
        account = accounts.of(sequence.request)
        accounts.settle(account)
        if account.context / account.weight > most:
            heaviest, most = account, account.context / account.weight
    theirs = [s for s in candidates if accounts.of(s.request) is heaviest]
    return min(theirs, key=lambda s: (s.num_preemptions, recompute_s(s, cache, accounts.line)))


def for_row(
    starved: Account,
    running: list[Sequence],
    reserved: dict[str, Sequence],
    cache: KVCache,
    accounts: Accounts,
) -> Sequence | None:
    """Who gives its row to an account that has at most half of its fair share; None when that would be no fairer.

    The account that gives keeps its own fair share, and nobody is asked who gave way before.
    """
    rows = len(running)
    weights = sum(account.weight for account in accounts.live.values())
    share = rows * starved.weight / weights
    if starved.rows + 1 > share or starved.rows > share / 2:
        return None
    donors = [
        a for a in accounts.live.values() if a.rows - 1 >= max(1.0, rows * a.weight / weights)
    ]
    if not donors:
        return None
    donor = max(donors, key=lambda account: account.rows / account.weight)
    theirs = [
        s
        for s in running[1:]
        if s.num_preemptions == 0 and s.id not in reserved and accounts.of(s.request) is donor
    ]
    if not theirs:
        return None
    return min(theirs, key=lambda s: recompute_s(s, cache, accounts.line))
