"""Steps on their way to those who follow: only when asked, bounded, and what is lost is counted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from octavo.core.plan import StepPlan
from octavo.core.result import StepResult
from octavo.engine.following import CREDIT, Followers, StepFeed
from octavo.engine.ipc import FollowSteps, Steps, decode_from_engine, frame
from octavo.meter.steplog import StepLog, StepRecord

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def record(step: int) -> StepRecord:
    return StepRecord(step=step, at=0.0, elapsed_s=0.1, gap_s=0.0, num_tokens=0, slices=())


def steps(first: int, count: int = 1, num_lost: int = 0) -> Steps:
    return Steps(tuple(record(first + i) for i in range(count)), num_lost)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(log: StepLog, count: int) -> None:
    for _ in range(count):
        step = log.num_added + 1
        log.add(StepPlan(step=step), StepResult(step=step, slices=(), elapsed_s=0.01))


def numbers(said: Steps | None) -> list[int]:
    return [] if said is None else [each.step for each in said.records]


def test_nothing_is_said_while_nobody_follows_and_some_at_a_time_then() -> None:
    clock = Clock()
    log = StepLog(clock=clock)
    feed = StepFeed(log, clock)
    run(log, 3)
    assert feed.due(at_once=True) is None
    feed.follow(100)
    assert feed.due(at_once=True) is None, "from now on"
    run(log, 1)
    assert numbers(feed.due()) == [4]
    run(log, 2)
    assert feed.due() is None, "just said"
    clock.now += 0.06
    assert numbers(feed.due()) == [5, 6]
    run(log, 1)
    assert numbers(feed.due(at_once=True)) == [7], "before the loop sleeps"
    feed.follow(0)
    run(log, 1)
    assert feed.due(at_once=True) is None


def test_a_client_that_does_not_ask_again_is_told_how_many_it_lost() -> None:
    log = StepLog(capacity=8)
    feed = StepFeed(log)
    feed.follow(5)
    run(log, 4)
    assert numbers(feed.due(at_once=True)) == [1, 2, 3, 4]
    run(log, 20)
    assert numbers(feed.due(at_once=True)) == [17] and feed.due(at_once=True) is None
    feed.follow(CREDIT)
    said = feed.due(at_once=True)
    assert said is not None and numbers(said) == list(range(18, 25)) and said.num_lost == 0
    run(log, 20)
    said = feed.due(at_once=True)
    assert said is not None and said.num_lost == 12 and numbers(said)[0] == 37
    assert decode_from_engine(frame(said)[4:]) == said


async def test_a_slow_reader_loses_the_oldest_and_others_do_not() -> None:
    asked: list[FollowSteps] = []
    followers = Followers(asked.append)
    slow, fast = followers.follow(), followers.follow()
    async with aclosing(slow), aclosing(fast):
        first = [asyncio.ensure_future(anext(each)) for each in (slow, fast)]
        await asyncio.sleep(0)
        followers.take(steps(1))
        assert [numbers(await each) for each in first] == [[1], [1]]
        assert asked == [FollowSteps(CREDIT)]
        seen = 0
        for start in range(2, 6002, 100):
            followers.take(steps(start, 100))
            said = await anext(fast)
            assert said.num_lost == 0
            seen += len(said.records)
        assert seen == 6000
        late = await anext(slow)
        assert late.num_lost == 2000 and numbers(late)[0] == 2002
        assert len(asked) > 5, "asked again in time"
    assert asked[-1] == FollowSteps(0)


async def test_following_ends_with_the_engine() -> None:
    followers = Followers(lambda _: None)
    async with aclosing(followers.follow()) as mine:
        waiting = asyncio.ensure_future(anext(mine, None))
        await asyncio.sleep(0)
        followers.end()
        assert await waiting is None
    assert [one async for one in followers.follow()] == []
