"""Admission against a simulated engine on a simulated clock: promises hold as often as they say, and overload is refused.

The engine here shares nothing with the forecast but its step time, which it reports wrongly, as fits do.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from fakes import FakeEngine
from octavo.core.errors import OverloadError
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import EngineStats
from octavo.core.steptime import StepTime, attended
from octavo.engine.frontend import Caller
from octavo.engine.ipc import Ready
from octavo.meter.metrics import Metrics
from octavo.server.admission.accounts import Place
from octavo.server.admission.desk import Admission
from octavo.server.admission.tickets import Ticket

TRUE = StepTime(base_s=0.008, token_s=0.0002, context_s=2e-8, num_steps=1000)
ROWS = 32
STEP_TOKENS = 512
CHUNK = 128
READY = replace(
    FakeEngine().ready, max_num_seqs=ROWS, max_num_batched_tokens=STEP_TOKENS, kv_tokens=1 << 16
)


@dataclass
class Job:
    """One request in the simulated engine."""

    request: Request
    ticket: Ticket
    num_outputs: int
    first_by: float
    computed: int = 0
    sent: int = 0

    @property
    def left(self) -> int:
        return self.request.num_prompt - self.computed


@dataclass
class Outcome:
    """What one run came to."""

    num_arrived: int = 0
    num_refused: int = 0
    num_good: int = 0
    retries: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def goodput(self) -> float:
        return self.num_good / self.seconds


class World:
    """Clock, engine and callers."""

    def __init__(self, rng: random.Random, *, fitted: float = 1.0, noise: float = 0.1) -> None:
        self.now = 100.0
        self.stats = EngineStats()
        self.metrics = Metrics("m")
        self.admission = Admission(self, self.metrics, clock=lambda: self.now)
        self._rng = rng
        self._noise = noise
        self._told = StepTime(
            base_s=TRUE.base_s * fitted,
            token_s=TRUE.token_s * fitted,
            context_s=TRUE.context_s * fitted,
            num_steps=1000,
        )
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._num_steps = 0
        self._prompt_tokens = 0
        self._num = 0

    @property
    def ready(self) -> Ready:
        return READY

    def run(self, rate: float, seconds: float, slo_s: float | None) -> Outcome:
        """Poisson arrivals of so many a second; without `slo_s`, the time allowed is only looked at afterwards."""
        outcome = Outcome(seconds=seconds)
        end = self.now + seconds
        arrivals = self._arrivals(rate, end)
        arrival = next(arrivals)
        while arrival < end or self._waiting or self._running:
            while arrival <= self.now:
                self._arrive(arrival, slo_s, outcome)
                arrival = next(arrivals)
            if not (self._waiting or self._running):
                self.now = arrival
                continue
            self._step(outcome)
        return outcome

    def _arrivals(self, rate: float, end: float) -> Iterator[float]:
        now = self.now
        while now < end:
            now += self._rng.expovariate(rate)
            yield min(now, end)
        while True:
            yield float("inf")

    def _arrive(self, at: float, slo_s: float | None, outcome: Outcome) -> None:
        outcome.num_arrived += 1
        self._num += 1
        length = int(self._rng.lognormvariate(5.5, 0.6)) + 1
        num_outputs = 1 + int(self._rng.expovariate(1 / 30))
        first_by = at + (2.0 if slo_s is None else slo_s)
        caller = Caller(first_token_by=None if slo_s is None else first_by)
        request = Request(
            id=str(self._num),
            token_ids=(1,) * length,
            params=SamplingParams(),
            max_tokens=200,
            seed=0,
            arrived=at,
        )
        now, self.now = (
            self.now,
            at,
        )  # a request is asked about when it comes, in the middle of a step
        try:
            self.admission.glance(caller, 4 * length)
            quote = self.admission.take(caller, [request], 4 * length)
        except OverloadError as error:
            outcome.num_refused += 1
            assert error.retry_after_s is not None
            outcome.retries.append(error.retry_after_s)
        else:
            place = Place(self.admission.accounts, self.admission.lane(caller), [request])
            ticket = Ticket(self.admission, place, caller, quote)
            ticket.hand_over(request.id)
            self._waiting.append(Job(request, ticket, num_outputs, first_by))
        self.now = now

    def _step(self, outcome: Outcome) -> None:
        decodes = [job for job in self._running if not job.left]
        budget = CHUNK if decodes else STEP_TOKENS
        tokens, context = len(decodes), sum(job.request.num_prompt + job.sent for job in decodes)
        chunks: list[tuple[Job, int]] = []
        chunked = [job for job in self._running if job.left]
        while budget and (chunked or (self._waiting and len(self._running) < ROWS)):
            if not chunked:
                chunked.append(self._waiting.popleft())
                self._running.append(chunked[0])
            job = chunked.pop(0)
            count = min(budget, job.left)
            chunks.append((job, count))
            budget -= count
            tokens += count
            context += attended(job.computed, count)
        took = TRUE.predict(tokens, context) * self._rng.lognormvariate(0, self._noise)
        self.now += took
        for job, count in chunks:
            job.computed += count
            self._prompt_tokens += count
        for job in [*decodes, *(job for job, _ in chunks if not job.left)]:
            job.sent += 1
            if job.sent == 1:
                job.ticket.begin(job.request.id)
                outcome.num_good += self.now <= job.first_by
            if job.sent == job.num_outputs:
                self._running.remove(job)
                job.ticket.end([job.sent])
                job.ticket.close()
        self._num_steps += 1
        self._tell(took)

    def _tell(self, took: float) -> None:
        self.stats = EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_steps=self._num_steps,
            prompt_tokens=self._prompt_tokens,
            last_step_s=took,
            queued_tokens=sum(job.left for job in self._waiting),
            pending_tokens=sum(job.left or 1 for job in self._running),
            step_time=self._told,
        )
        self.admission.observe(self.stats)

    def coverage(self) -> float:
        return self.metrics.value("octavo:ttft_interval_coverage")


CAPACITY = 12.5
"""What this engine prefills of those prompts beside their decodes, in requests a second."""
SLO_S = 2.0


@pytest.mark.parametrize(
    ("load", "fitted"), [(0.4, 1.0), (0.8, 1.7), (1.0, 0.6), (2.4, 1.0), (2.4, 0.6)]
)
def test_an_interval_of_80_percent_holds_in_75_to_85(load: float, fitted: float) -> None:
    world = World(random.Random(f"{load} {fitted}"), fitted=fitted)
    world.run(load * CAPACITY, 2000 / CAPACITY / min(1.0, load), SLO_S)
    assert 0.75 <= world.coverage() <= 0.85


def test_after_a_change_of_load_it_is_nearly_so() -> None:
    """Late outcomes are of another regime; what is promised meanwhile errs on the wide side."""
    world = World(random.Random(7))
    for load in (0.4, 2.0, 0.7, 3.0):
        world.run(load * CAPACITY, 60, SLO_S)
        assert 0.72 <= world.coverage() <= 0.90


def test_at_three_times_capacity_goodput_stays_and_promises_are_kept() -> None:
    seconds = 100
    best = World(random.Random(3)).run(0.9 * CAPACITY, seconds, SLO_S).goodput
    world = World(random.Random(3))
    loaded = world.run(3 * CAPACITY, seconds, SLO_S)
    assert loaded.goodput >= 0.95 * best
    assert loaded.num_refused > 0.4 * loaded.num_arrived
    kinds = [("kind", "ttft_slo")]
    broken = world.metrics.value("octavo:promises_broken_total", kinds)
    assert broken <= 0.15 * world.metrics.value("octavo:promises_total", kinds)
    assert all(1.0 <= seconds <= 5.0 for seconds in loaded.retries)
    assert not world.admission.accounts.lanes
    without = World(random.Random(3)).run(3 * CAPACITY, 30, None)
    assert without.goodput < 0.2 * best, "what the refusals are for"


def test_nobody_is_refused_by_a_forecast_that_stands_on_little() -> None:
    world = World(random.Random(5))
    assert world.run(3 * CAPACITY, 0.5, 0.01).num_refused == 0


def test_hopeless_wishes_do_not_refuse_everybody_for_ever() -> None:
    """Learned in bad times: each call on an idle server is tried, and teaches."""
    world = World(random.Random(5))
    world.run(0.5 * CAPACITY, 60, None)
    hopeless = world.run(0.5 * CAPACITY, 60, 0.001)
    assert 0 < hopeless.num_refused < hopeless.num_arrived
    assert world.run(0.1 * CAPACITY, 60, SLO_S).num_refused == 0
