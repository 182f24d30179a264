"""Traffic through the real scheduler on a simulated machine: steps take what is predicted, requests are as long as they
are said to be. What comes out are the records that the load generator makes of live runs.

Only what a step takes, what lies between two steps, and what a request takes on its way in and out are made up, by
`StepTimes`. No clock and no I/O: the same arguments, the same records.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from octavo.core.config import EngineConfig
from octavo.core.errors import OctavoError
from octavo.core.kvspec import KVGroup
from octavo.core.params import SamplingParams
from octavo.core.plan import Decodes, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import Chosen, Event, Failed, SliceResult, StepResult, TokenOut
from octavo.engine.replay import NamedCache
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from octavo.tools.bench.stats import Record
from octavo.tools.tune.traffic import Job

_TOKEN = 2
_LEAST_STEP_S = 1e-6


class Way(NamedTuple):
    """Of a request, in seconds: from the caller to the scheduler, of its first token back, and of a loop that slept to
    the begin of its first step.
    """

    inward_s: float
    outward_s: float
    wake_s: float = 0.0


class StepTimes(Protocol):
    """The part of a machine that is not the scheduler."""

    def step_s(self, slices: Sequence[Slice], rng: random.Random) -> float:
        """What a step of these slices takes; measured machines vary."""

    def gap_s(self, num_rows: int, rng: random.Random) -> float:
        """From the end of a step to the begin of the next while there is work."""

    def way(self, rng: random.Random) -> Way:
        """What lies around the engine for one request."""

    def slowness(self, rng: random.Random) -> Callable[[float], float] | None:
        """How many times as long steps take, by when they begin: what varies longer than for a step."""

    def delay_s(self, rng: random.Random) -> float:
        """From the end of a step to the callers, for tokens that are not their first."""


class Machine(NamedTuple):
    """What a scheduler is made of."""

    limits: Limits
    groups: tuple[KVGroup, ...]
    enable_prefix_caching: bool = True
    policy: str = EngineConfig().scheduling_policy


class Simulated(NamedTuple):
    """What came of a simulation."""

    records: list[Record]
    num_steps: int
    num_preemptions: int
    most_blocks: int
    """Held at once, over all groups."""
    cached_share: float
    """Of the prompt tokens, those found in the prefix cache."""


def simulate(
    jobs: Sequence[Job],
    machine: Machine,
    times: StepTimes,
    seed: int = 0,
    slowness: Callable[[float], float] | None = None,
) -> Simulated:
    """Run all jobs to their ends; `slowness`: as of StepTimes, instead of it."""
    return _Run(jobs, machine, times, random.Random(seed), slowness).run()


class _Run:
    def __init__(
        self,
        jobs: Sequence[Job],
        machine: Machine,
        times: StepTimes,
        rng: random.Random,
        slowness: Callable[[float], float] | None,
    ) -> None:
        cache = NamedCache(machine.groups, enable_prefix_caching=machine.enable_prefix_caching)
        cache.names = {f"r{number}": job.names for number, job in enumerate(jobs) if job.names}
        self.scheduler = Scheduler(machine.limits, cache, POLICIES.load(machine.policy)())
        self.jobs = jobs
        self.times = times
        self.rng = rng
        self.slowness = times.slowness(rng) if slowness is None else slowness
        self.now = 0.0
        self.most_blocks = 0
        self.ways = [times.way(rng) for _ in jobs]
        self.chunks: list[list[float]] = [[] for _ in jobs]
        self.num_out: list[int] = [0] * len(jobs)
        self.delay_s = 0.0
        self.ends: list[float] = [0.0] * len(jobs)
        self.cached: list[int] = [0] * len(jobs)
        self.errors: dict[int, str] = {}
        come = [(job.at + self.ways[number].inward_s, number) for number, job in enumerate(jobs)]
        self.todo = sorted(come, reverse=True)
        self._tokens: dict[int, tuple[int, ...]] = {}

    def run(self) -> Simulated:
        scheduler = self.scheduler
        num_blocks = scheduler.cache.num_blocks
        while self.todo or scheduler.has_work:
            if not scheduler.has_work and self.todo[-1][0] > self.now:
                at, number = self.todo[-1]
                self.now = at + self.ways[number].wake_s
            while self.todo and self.todo[-1][0] <= self.now:
                self._add(*self.todo.pop())
            plan = scheduler.schedule(self.now)
            if plan is not None:
                self.most_blocks = max(self.most_blocks, num_blocks - scheduler.cache.num_free)
                self._step(plan)
        prompts = sum(job.prompt_len for job in self.jobs)
        return Simulated(
            records=[self._record(number) for number in range(len(self.jobs))],
            num_steps=scheduler.counters.num_steps,
            num_preemptions=scheduler.counters.num_preemptions,
            most_blocks=self.most_blocks,
            cached_share=sum(self.cached) / prompts if prompts else 0.0,
        )

    def _add(self, at: float, number: int) -> None:
        job = self.jobs[number]
        tokens = self._tokens.setdefault(job.prompt_len, (_TOKEN,) * job.prompt_len)
        request = Request(
            id=f"r{number}",
            token_ids=tokens,
            params=SamplingParams(),
            max_tokens=job.output_len,
            seed=0,
            arrived=at,
        )
        try:
            self.scheduler.add(request)
        except OctavoError as error:
            self.errors[number] = error.info().one_line()
            self.ends[number] = at

    def _step(self, plan: StepPlan) -> None:
        slices = plan.slices
        slow = 1.0 if self.slowness is None else self.slowness(self.now)
        elapsed = slow * max(_LEAST_STEP_S, self.times.step_s(slices, self.rng)) if slices else 0.0
        self.now += elapsed
        self.delay_s = self.times.delay_s(self.rng)
        result = StepResult(step=plan.step, slices=_results(slices), elapsed_s=elapsed)
        for event in self.scheduler.apply(plan, result, self.now):
            self._note(event)
        if slices:
            self.now += slow * self.times.gap_s(len(slices), self.rng)

    def _note(self, event: Event) -> None:
        number = int(event.id[1:])
        if isinstance(event, TokenOut):
            chunks = self.chunks[number]
            self.num_out[number] += 1
            # Who reads late finds two tokens in one piece.
            if not chunks:
                chunks.append(self.now + self.ways[number].outward_s)
            elif self.now + self.delay_s > chunks[-1]:
                chunks.append(self.now + self.delay_s)
            self.cached[number] = max(self.cached[number], event.num_cached)
            return
        self.ends[number] = self.now
        if isinstance(event, Failed):
            self.errors[number] = event.error.one_line()

    def _record(self, number: int) -> Record:
        job, chunks = self.jobs[number], self.chunks[number]
        return Record(
            index=number,
            due=job.at,
            sent=job.at,
            done=max([self.ends[number], *chunks[-1:]]),
            chunk_times=tuple(chunks),
            prompt_tokens=job.prompt_len,
            output_tokens=self.num_out[number],
            asked_tokens=job.output_len,
            cached_tokens=self.cached[number],
            error=self.errors.get(number),
        )


def _results(slices: Sequence[Slice]) -> Sequence[SliceResult]:
    if isinstance(slices, Decodes):  # as columns, which the scheduler takes faster
        return Chosen(slices.rows, [_TOKEN] * len(slices))
    return [SliceResult(row=p.row, token_ids=(_TOKEN,) if p.sample else ()) for p in slices]
