"""How much memory the running sequences will come to hold, from how long outputs have been.

For each kind of request (tenant and adapter) the chance to end at a length, given that it was reached, is learned from the
requests that ended (the estimate of Kaplan and Meier, 1958: one cut off by its own `max_tokens` says only that it would
have been at least so long). From it follows what the pool will hold at several points ahead, when some have grown and
others have ended and given back theirs; its peak decides whether one more may start (the idea of the past-future
scheduler, Gong et al., ASPLOS 2025). Knows no clock; forgets old requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from octavo.cache.groups import KVCache, Match, window_blocks
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.request import Request
from octavo.core.sequence import Sequence

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MEMORY = 256
"""Requests of a kind after which an old one counts 1/e."""
ENOUGH = 16
"""Requests of a kind before its own lengths are used; until then everyone's."""
MOST_KINDS = 256
MARGIN = 1.0
"""Standard deviations of the predicted use that are kept free on top of it."""
_STEPS = np.array([0, *(int(BLOCK_SIZE * 2 ** (i / 2)) for i in range(28))], dtype=np.int64)
_FROM, _TO = _STEPS[:-1], _STEPS[1:]
"""Spans of steps ahead, half an octave each: who runs at the start of one is taken to be as long as it is at its end."""
_PRIOR = 2.0
_PRIOR_HAZARD = 0.12
"""Before anything is known a quarter of an octave ends one in eight: optimistic, as most callers ask for more than they use."""


def _buckets(lengths: Ints) -> Ints:
    """Index of the bucket of each length: one each below 8, then four per octave."""
    _, bits = np.frexp(lengths.astype(np.float64))
    shift = np.maximum(bits - 3, 0)
    return np.where(lengths < 8, lengths, 8 + (bits - 4) * 4 + ((lengths >> shift) & 3))


_MOST_TOKENS = (1 << 24) - 1
_NUM_BUCKETS = int(_buckets(np.array([_MOST_TOKENS]))[0]) + 1


class Lengths:
    """Output lengths of one kind."""

    def __init__(self) -> None:
        self.count = 0
        self._reached = np.full(_NUM_BUCKETS, _PRIOR)
        self._ended = np.full(_NUM_BUCKETS, _PRIOR * _PRIOR_HAZARD)
        self._survival: Floats | None = None

    def learn(self, num_output: int, *, cut_off: bool) -> None:
        """A request ended after so many tokens; `cut_off`: by its limit, and it would have gone on."""
        at = int(_buckets(np.array([num_output]))[0])
        self._reached *= 1 - 1 / MEMORY
        self._ended *= 1 - 1 / MEMORY
        self._reached[: at if cut_off else at + 1] += 1
        if not cut_off:
            self._ended[at] += 1
        self.count += 1
        self._survival = None

    @property
    def survival(self) -> Floats:
        """Of each bucket, the chance to reach it."""
        if self._survival is None:
            # The prior's share is forgotten, too; where nothing was seen it is what is left.
            stay = 1 - self._ended / np.maximum(self._reached, 1e-9)
            self._survival = np.concatenate(([1.0], np.cumprod(np.maximum(stay, 1e-6))[:-1]))
        return self._survival


class Growth:
    """What is learned, and the predicted use of one step. Owner: the scheduler's room."""

    def __init__(self, cache: KVCache, chunk: int) -> None:
        self._cache = cache
        self._most = [float(window_blocks(group, chunk)) for group in cache.groups]
        self._everyone = Lengths()
        self._kinds: OrderedDict[tuple[str, str | None], Lengths] = OrderedDict()
        self._mean: list[Floats] | None = None
        self._variance: list[Floats] = []
        self._asked: list[tuple[Floats, Floats]] = []

    def learn(self, request: Request, num_output: int, *, cut_off: bool) -> None:
        """A request that ran has ended."""
        kind = (request.tenant, request.adapter)
        lengths = self._kinds.pop(kind, None) or Lengths()
        self._kinds[kind] = lengths
        if len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)
        for each in (lengths, self._everyone):
            each.learn(num_output, cut_off=cut_off)

    def _of(self, request: Request) -> Lengths:
        lengths = self._kinds.get((request.tenant, request.adapter))
        return lengths if lengths is not None and lengths.count >= ENOUGH else self._everyone

    def forget_step(self) -> None:
        """The running sequences have changed."""
        self._mean = None

    def fits(self, sequence: Sequence, match: Match, running: Iterable[Sequence]) -> bool:
        """Whether the pool is predicted to hold what runs and `sequence` besides, at any time."""
        if self._mean is None:
            self._predict(list(running))
        assert self._mean is not None
        alive, later = self._alive([sequence])
        self._asked = []
        fits = True
        for index, pool in enumerate(self._cache.pools):
            table = match.tables[index]
            held = len(table) - pool.num_unheld(table)
            growth = np.maximum(_blocks(later, self._most[index]) - held, 0.0)
            more, spread = _sums(alive, growth, np.zeros(1))
            self._asked.append((more, spread))
            peak = self._mean[index] + more + MARGIN * np.sqrt(self._variance[index] + spread)
            fits &= bool(peak.max() <= pool.num_usable)
        return fits

    def take(self) -> None:
        """The sequence that was asked for last has started."""
        assert self._mean is not None
        for index, (more, spread) in enumerate(self._asked):
            self._mean[index] = self._mean[index] + more
            self._variance[index] = self._variance[index] + spread

    def _predict(self, running: list[Sequence]) -> None:
        """Use of each pool in each span, and its variance."""
        alive, later = self._alive(running)
        self._mean, self._variance = [], []
        for pool, most, tables in zip(
            self._cache.pools,
            self._most,
            zip(*(s.blocks for s in running), strict=True),
            strict=True,
        ):
            held = np.minimum(np.array([len(table) for table in tables], dtype=np.float64), most)
            shared = np.array([s.num_matched // BLOCK_SIZE for s in running], dtype=np.float64)
            growth = _blocks(later, most) - held[:, None]
            mean, variance = _sums(alive, growth, np.maximum(held - shared, 0.0))
            self._mean.append(pool.num_usable - pool.num_free + mean)
            self._variance.append(variance)

    def _alive(self, sequences: list[Sequence]) -> tuple[Floats, Ints]:
        """Sequences x spans: the chance to run in it, and the tokens at its end."""
        outputs = np.array([s.num_output for s in sequences], dtype=np.int64)[:, None]
        tokens = np.array([s.num_tokens for s in sequences], dtype=np.int64)[:, None]
        most = np.array([s.most_tokens for s in sequences], dtype=np.int64)[:, None]
        table = np.array([self._of(s.request).survival for s in sequences])
        rows = np.arange(len(sequences))[:, None]
        reached = np.minimum(outputs + _FROM, _MOST_TOKENS)
        chance = table[rows, _buckets(reached)] / table[rows, _buckets(outputs)]
        # One whose limit lies before the span has ended; all run in the first.
        is_open = (tokens + _FROM < most) | (_FROM == 0)
        return np.where(is_open, chance, 0.0), np.minimum(tokens + _TO, most)


def _blocks(tokens: Ints, most: float) -> Floats:
    return np.minimum(-(-tokens // BLOCK_SIZE), most)


def _sums(alive: Floats, growth: Floats, held: Floats) -> tuple[Floats, Floats]:
    """Change of use in each span and its variance: who still runs has grown, who ended has given back."""
    change = alive * growth - (1 - alive) * held[:, None]
    spread = alive * (1 - alive) * (growth + held[:, None]) ** 2
    return change.sum(axis=0), spread.sum(axis=0)
