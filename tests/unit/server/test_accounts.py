"""What is in front of a call, and what a forecast makes of it."""

from __future__ import annotations

import random

import pytest

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import EngineStats
from octavo.core.steptime import StepTime
from octavo.server.admission.accounts import Accounts, Lane, Place
from octavo.server.admission.calibration import COVERAGE, Calibration, Coverage, Window
from octavo.server.admission.forecast import Ahead, Pace, Room, backlog, decode_s, first_token_s

ME, OTHER = Lane("me", 0), Lane("other", 0)
STEP = StepTime(base_s=0.01, token_s=0.001, context_s=1e-6, num_steps=100)
ROOM = Room(rows=8, step_tokens=512, kv_tokens=10_000)
NOTHING = Ahead(tokens=0, num_prompts=0, running=0, mean_tokens=0, output_tokens=0)


def request(name: str, length: int, index: int = 0) -> Request:
    return Request(
        id=name,
        token_ids=(1,) * length,
        params=SamplingParams(),
        max_tokens=1,
        seed=0,
        arrived=0.0,
        index=index,
    )


def test_a_light_tenant_does_not_wait_for_a_heavy_one() -> None:
    accounts = Accounts()
    for index in range(100):
        Place(accounts, OTHER, [request(f"o{index}", 100)])
    Place(accounts, ME, [request("m", 50)])
    before = accounts.before(ME, 30)
    assert before.tokens == pytest.approx(50 + 80), "its own, and as much of the other's"
    assert accounts.before(OTHER, 100).tokens == pytest.approx(10_000 + 50), (
        "all of the light one's"
    )
    assert accounts.before(Lane("third", 0), 10).tokens == pytest.approx(10 + 10)


def test_weights_and_priorities_are_looked_at() -> None:
    accounts = Accounts()
    Place(accounts, Lane("heavy", 0, weight=3.0), [request("h", 1000)])
    Place(accounts, Lane("me", 5), [request("batch", 400)])
    assert accounts.before(ME, 100).tokens == pytest.approx(300)
    assert accounts.before(Lane("me", 5), 100).tokens == pytest.approx(400 + 1000)


def test_choices_of_one_prompt_count_as_one_prompt_and_a_bit() -> None:
    accounts = Accounts()
    place = Place(accounts, ME, [request(f"r-{index}", 100, index) for index in range(3)])
    assert (accounts.tokens, accounts.num_prompts, accounts.num_calls) == (132, 3, 1)
    place.hand_over("r-0", 1.0)
    place.hand_over("r-0", 1.0)
    assert accounts.handed_tokens == 100
    place.begin("r-0")
    place.begin("r-0")
    assert (accounts.tokens, accounts.handed_tokens) == (32, 0)
    assert [place.close(), place.close()] == [True, False]
    assert (accounts.tokens, accounts.num_calls, accounts.lanes) == (0, 0, {})


def test_books_balance_whatever_happens() -> None:
    rng = random.Random(11)
    accounts, open_places = Accounts(), []
    for index in range(500):
        lane = Lane(rng.choice("abc"), rng.randrange(3))
        names = [f"{index}-{k}" for k in range(rng.randint(1, 3))]
        requests = [request(name, rng.randint(1, 50)) for name in names]
        place = Place(accounts, lane, requests)
        open_places.append((place, names))
        for place, names in rng.sample(open_places, min(5, len(open_places))):
            act = rng.choice([place.hand_over, place.begin, place.close])
            if act == place.hand_over:
                place.hand_over(rng.choice(names), float(index))
            elif act == place.begin:
                place.begin(rng.choice(names))
            else:
                place.close()
        assert accounts.tokens == sum(row.tokens for row in accounts.lanes.values())
        assert 0 <= accounts.handed_tokens <= accounts.tokens
    for place, _ in open_places:
        place.close()
    assert (accounts.tokens, accounts.num_prompts, accounts.num_calls) == (0, 0, 0)
    assert (accounts.handed_tokens, accounts.lanes) == (0, {})


def test_a_prompt_alone_takes_its_steps() -> None:
    one = first_token_s(STEP, ROOM, 512, NOTHING, 100)
    assert one == pytest.approx(0.01 + 0.1 + 1e-6 * 100**2 / 2)
    two = first_token_s(STEP, ROOM, 512, NOTHING, 1000)
    assert two == pytest.approx(2 * 0.01 + 1.0 + 1e-6 * 1000**2 / 2)


def test_more_ahead_and_more_decodes_take_longer() -> None:
    queue = NOTHING._replace(tokens=1024, num_prompts=2)
    busy = queue._replace(running=4, mean_tokens=100)
    plain, waits, beside = (
        first_token_s(STEP, ROOM, 128, ahead, 100) for ahead in (NOTHING, queue, busy)
    )
    assert plain < waits < beside


@pytest.mark.parametrize("room", [ROOM, Room(rows=100, step_tokens=512, kv_tokens=800)])
def test_without_a_row_or_blocks_somebody_has_to_finish_first(room: Room) -> None:
    full = Ahead(tokens=0, num_prompts=0, running=8, mean_tokens=100, output_tokens=80)
    some = full._replace(running=7)
    gap = first_token_s(STEP, room, 512, full, 1) / first_token_s(STEP, room, 512, some, 1)
    assert gap > 5
    # Eight rows that make 80 tokens each: one ends every ten steps.
    assert first_token_s(STEP, room, 512, full, 1) == pytest.approx(10 * decode_s(STEP, full))


def stats(
    step: int, prompt: int, queued: int, hits: int = 0, own_steps: int | None = None
) -> EngineStats:
    return EngineStats(
        step_time=StepTime(num_steps=step if own_steps is None else own_steps),
        num_steps=step,
        prompt_tokens=prompt,
        queued_tokens=queued,
        prefix_queries=prompt + hits,
        prefix_hits=hits,
        num_running=3,
        pending_tokens=3,
    )


def test_the_pace_is_that_of_a_backlog() -> None:
    pace = Pace()
    assert (pace.chunk(512), pace.drain(), pace.missed) == (512, None, 1.0)
    first = stats(1, 0, 900)
    assert pace.observe(first, 0.0)
    assert not pace.observe(first, 0.1), "the same snapshot again"
    pace.observe(stats(3, 256, 644), 0.2)
    assert pace.chunk(512) == pytest.approx(128)
    assert pace.drain() == pytest.approx(1280)
    pace.observe(stats(4, 260, 0), 5.0)  # the last, which was not full
    pace.observe(stats(9, 270, 0), 9.0)
    assert pace.chunk(512) == pytest.approx(128)
    pace.observe(stats(9, 270, 200), 9.4)
    drain = pace.drain()
    pace.observe(
        stats(11, 320, 150, own_steps=2), 99.5
    )  # counters go on over a restart, which is no step
    assert pace.drain() == drain
    pace.observe(stats(12, 370, 50, hits=50, own_steps=3), 99.6)
    assert 0.5 < pace.missed < 1.0
    assert backlog(stats(1, 0, 5)) == 5


def test_quantiles_of_a_window() -> None:
    window = Window(size=10)
    for value in [100.0] * 5 + [float(n) for n in range(10)]:
        window.add(value)
    assert len(window) == 10
    assert [window.quantile(level) for level in (0.0, 0.5, 1.0)] == [0.0, 5.0, 9.0]
    assert window.between(0.2, 0.8) == (1.0, 8.0)
    assert window.between(0.01, 0.99) == (0.0, 9.0)


def test_of_few_numbers_the_bounds_hold_as_well() -> None:
    rng = random.Random(4)
    held = 0
    for _ in range(4000):
        window = Window()
        for _ in range(20):
            window.add(rng.random())
        low, high = window.between(0.1, 0.9)
        held += low <= rng.random() <= high
    assert 0.79 <= held / 4000 <= 0.84


@pytest.mark.parametrize("jump", [1.0, 3.0])
def test_an_interval_holds_as_often_as_it_says(jump: float) -> None:
    """Independent errors, and ones that triple on the way."""
    rng = random.Random(2)
    calibration, coverage = Calibration(), Coverage()
    assert calibration.interval() is None
    share = 0.0
    for index in range(4000):
        promised = calibration.interval()
        ratio = rng.lognormvariate(0.0, 0.3) * (jump if index > 2000 else 1.0)
        if promised is not None:
            assert promised.low <= promised.middle <= promised.high
            share = coverage.add(promised.low <= ratio <= promised.high)
        calibration.learn(ratio, promised)
    assert COVERAGE - 0.05 <= share <= COVERAGE + 0.05
