"""The canary knows what it was told, says what differs, and disturbs nobody."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from direct_engine import DirectEngine
from fakes import FakeEngine
from local_engine import write_tiny
from octavo.core.errors import ErrorInfo, OverloadError
from octavo.core.params import PoolingParams, SamplingParams
from octavo.core.pooling import PoolingFacts
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Pooled, PooledValues, TokenLogprobs
from octavo.engine.ipc import Ready
from octavo.server.canary import Answer, Canary, compare


def answer(*token_ids: int, shift: float = 0.0) -> Answer:
    """Each token at hand has -1, the next id -1.2, anything else is unlikely."""
    tops = (
        TokenLogprobs((one, one, one + 1), (shift - 1, shift - 1, -1.2), 1) for one in token_ids
    )
    return Answer(token_ids, tuple(tops))


@pytest.mark.parametrize(
    ("other", "is_exact", "num_equal", "is_good"),
    [
        (answer(1, 2, 3), True, 3, True),
        (answer(1, 2, 3, shift=1e-4), True, 3, True),
        (answer(1, 2, 3, shift=0.01), True, 3, False),
        (answer(1, 2, 3, shift=0.01), False, 3, True),
        (answer(1, 2, 3, shift=-1.0), False, 3, False),
        (answer(1, 3, 9), True, 1, False),
        (answer(1, 3, 9), False, 1, True),
        (answer(1, 4, 9), False, 1, False),
        (answer(1, 2), False, 2, False),
        (answer(1, 2, 3, shift=math.nan), False, 3, False),
        (Answer((1, 2, 3)), False, 0, False),
    ],
)
def test_answers_beside_each_other(
    other: Answer, is_exact: bool, num_equal: int, is_good: bool
) -> None:
    """In 16-bit types two tokens that were about as likely may change places, and what follows them says nothing."""
    found = compare(answer(1, 2, 3), other, is_exact=is_exact)
    assert (found.num_equal, found.is_good) == (num_equal, is_good)


@pytest.mark.parametrize(
    ("other", "is_exact", "is_good"),
    [
        ((1.0, -4.0), True, True),
        ((1.0, -4.001), True, True),
        ((1.0, -4.1), True, False),
        ((1.0, -4.1), False, True),
        ((1.0, 4.0), False, False),
        ((1.0,), False, False),
    ],
)
def test_features_beside_each_other(
    other: tuple[float, ...], is_exact: bool, is_good: bool
) -> None:
    known = Answer(features=(1.0, -4.0))
    found = compare(known, Answer(features=other), is_exact=is_exact)
    assert (found.is_good, found.num_equal) == (is_good, int(is_good))


def test_what_it_asks_is_asked_at_the_lowest_priority_of_nobody() -> None:
    engine = FakeEngine()
    canary = Canary(engine, 30.0)
    asyncio.run(canary.ask())
    asyncio.run(canary.ask())
    first, second = engine.submitted
    assert first.id != second.id and first.token_ids == second.token_ids
    assert first.priority > 1 << 20 and first.tenant == first.cache_scope == "octavo:canary"
    assert (first.num_prompt, first.max_tokens, first.eos_token_ids) == (12, 8, ())
    assert canary.match is not None and canary.match == (8, 0.0, True) and not canary.trouble


def test_a_full_queue_makes_it_older_and_says_nothing() -> None:
    engine = FakeEngine()
    canary = Canary(engine, 30.0)
    asyncio.run(canary.ask())
    answered = canary._answered_at
    for state, refusal in (("ready", OverloadError("full")), ("loading", None)):
        engine.state, engine.refuse = state, refusal
        asyncio.run(canary.ask())
        assert canary._answered_at == answered and not canary.trouble
        assert canary.num_failures == 0
    assert canary.age_s is not None and canary.age_s > 0


def test_an_engine_that_fails_it_is_in_trouble_until_it_answers() -> None:
    engine = FakeEngine()
    engine.fail_after = 3
    canary = Canary(engine, 30.0)
    asyncio.run(canary.ask())
    assert "failed on purpose" in canary.trouble and canary.num_failures == 1
    assert canary.known is None, "that is no answer to compare with"
    engine.fail_after = None
    asyncio.run(canary.ask())
    assert not canary.trouble and canary.known is not None and canary.num_failures == 1


def test_it_asks_again_soon_after_an_answer_that_is_no_good() -> None:
    engine = FakeEngine()
    canary = Canary(engine, 3600.0)

    async def until_good() -> None:
        task = asyncio.create_task(canary.run())
        while canary.num_failures == 0:
            await asyncio.sleep(0)
        engine.fail_after = None
        while canary.trouble:
            await asyncio.sleep(0.01)
        task.cancel()

    engine.fail_after = 0
    asyncio.run(asyncio.wait_for(until_good(), 10))


class PoolingEngine(FakeEngine):
    """Pools; `features` may be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = [0.5, -2.0, 1.0]

    @property
    def ready(self) -> Ready:
        return _with_pooling(super().ready)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        assert isinstance(request.pooling, PoolingParams) and request.pooling.task == "embed"
        values = PooledValues((3,), array("f", self.features).tobytes())
        yield Pooled(id=request.id, values=values)
        if self.fail_after is not None:
            info = ErrorInfo(code="not_finite", message="NaN.", status=500)
            yield Failed(id=request.id, error=info)


def _with_pooling(ready: Ready) -> Ready:
    values = {name: getattr(ready, name) for name in ready.__struct_fields__}
    return Ready(**values | {"pooling": PoolingFacts(tasks=("embed",), num_features=3)})


def test_a_pooling_model_answers_with_features() -> None:
    engine = PoolingEngine()
    canary = Canary(engine, 30.0)
    asyncio.run(canary.ask())
    assert canary.num_expected == 1 and canary.match == (1, 0.0, True)
    engine.features[1] = -2.2
    asyncio.run(canary.ask())
    assert canary.match is not None and not canary.match.is_good and canary.match.num_equal == 0
    assert "0 of 1" in canary.trouble


def test_the_same_bits_beside_other_requests(tmp_path: Path) -> None:
    """Through a real scheduler and model: the drift is nothing at all, whatever runs beside it."""
    engine = DirectEngine(write_tiny(tmp_path), load_format="dummy")
    canary = Canary(engine, 30.0)

    async def other(index: int) -> None:
        request = Request(
            id=f"r{index}",
            token_ids=tuple(range(3, 40 + index)),
            params=SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True),
            max_tokens=20,
            seed=0,
            arrived=0.0,
        )
        async for event in engine.generate(request):
            assert not isinstance(event, Failed), event

    async def beside() -> None:
        await canary.ask()
        await asyncio.gather(*(other(index) for index in range(5)), canary.ask())

    asyncio.run(beside())
    assert canary.match == (8, 0.0, True) and canary.num_failures == 0
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
