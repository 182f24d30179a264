"""A simulated machine with a clock: the real scheduler, steps that take what a line says, requests that come at times.

Outputs are as long as the workload says, by an end token; so an oracle can be told them (`max_tokens` = the true length).
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from octavo.cache.groups import KVCache
from octavo.core.kvspec import KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Failed, Finished, SliceResult, StepResult, TokenOut
from octavo.core.steptime import StepTime
from octavo.scheduler import invariants
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.steptime import context_of

EOS = 1


@dataclass
class Job:
    """One request to come."""

    at: float
    tenant: str
    prompt: int
    output: int
    max_tokens: int = 0
    """0: the true length."""
    follows: list[Job] = field(default_factory=list)
    """Sent when this one has ended: a caller who waits for answers."""
    deadline_s: float | None = None


@dataclass
class Report:
    """What came of a run, by tenant where it says so."""

    now: float = 0.0
    gaps: dict[str, list[float]] = field(default_factory=dict)
    """Seconds between two tokens of a request."""
    firsts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds to the first token."""
    served: dict[str, int] = field(default_factory=dict)
    """Tokens through the model, as of `until`."""
    outputs: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    most_preemptions: int = 0
    failed: list[str] = field(default_factory=list)
    scheduler: Scheduler | None = None

    def quantile(self, tenant: str, q: float, of: str = "gaps") -> float:
        values = sorted(getattr(self, of)[tenant])
        return values[min(len(values) - 1, int(q * len(values)))]


class Machine:
    """Runs jobs to the end, or until a time."""

    def __init__(
        self,
        line: StepTime,
        *,
        blocks: int,
        policy: str = "fair",
        noise: float = 0.02,
        seed: int = 0,
        weights: dict[str, float] | None = None,
        check_every: int = 0,
        **limits: object,
    ) -> None:
        options = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 16384}
        group = KVGroup(spec=KVSpec(num_kv_heads=1, head_dim=8), layers=(0,), num_blocks=blocks + 1)
        self.scheduler = Scheduler(
            Limits(**(options | limits)),  # type: ignore[arg-type]
            KVCache((group,)),
            POLICIES.load(policy)(),
        )
        self.line = line
        self.noise = noise
        self.rng = random.Random(seed)
        self.weights = weights or {}
        self.check_every = check_every
        self.report = Report(scheduler=self.scheduler)
        self._jobs: dict[str, Job] = {}
        self._last: dict[str, float] = {}
        self._made: dict[str, int] = {}

    def run(self, jobs: list[Job], until: float = float("inf")) -> Report:
        """Play the jobs. Raises AssertionError where an invariant breaks."""
        heap = [(job.at, number, job) for number, job in enumerate(jobs)]
        heapq.heapify(heap)
        report, scheduler = self.report, self.scheduler
        while (heap or scheduler.has_work) and report.now < until:
            if not scheduler.has_work:
                report.now = max(report.now, heap[0][0])
            while heap and heap[0][0] <= report.now:
                self._add(heapq.heappop(heap)[2])
            for ended in self._step():
                for job in ended.follows:
                    job.at = report.now
                    heapq.heappush(heap, (job.at, id(job), job))
        return report

    def _add(self, job: Job) -> None:
        name = f"{job.tenant}{len(self._jobs)}"
        self._jobs[name] = job
        self.scheduler.add(
            Request(
                id=name,
                token_ids=(2 + len(self._jobs), *range(3, job.prompt + 2)),
                params=SamplingParams(),
                max_tokens=job.max_tokens or job.output,
                seed=0,
                arrived=job.at,
                tenant=job.tenant,
                weight=self.weights.get(job.tenant, 1.0),
                eos_token_ids=(EOS,),
                deadline=None if job.deadline_s is None else job.at + job.deadline_s,
            )
        )

    def _step(self) -> list[Job]:
        report, scheduler = self.report, self.scheduler
        events = scheduler.expire(report.now)
        plan = scheduler.schedule(report.now)
        if plan is not None:
            rows = {sequence.row: sequence for sequence in scheduler.running}
            slices = []
            for piece in plan.slices:
                sequence = rows[piece.row]
                tenant = sequence.request.tenant
                report.served[tenant] = report.served.get(tenant, 0) + piece.count
                token = ()
                if piece.sample:
                    last = sequence.num_output + 1 >= self._jobs[sequence.id].output
                    token = (EOS if last else 2,)
                slices.append(SliceResult(row=piece.row, token_ids=token))
            elapsed = self.line.predict(plan.num_tokens, context_of(plan))
            elapsed *= max(0.5, self.rng.gauss(1, self.noise))
            report.now += elapsed
            result = StepResult(step=plan.step, slices=tuple(slices), elapsed_s=elapsed)
            events += scheduler.apply(plan, result, report.now)
            if self.check_every and plan.step % self.check_every == 0:
                wrong = invariants.check(scheduler)
                assert not wrong, wrong
        return self._note(events)

    def _note(self, events: list[object]) -> list[Job]:
        report, ended = self.report, []
        for event in events:
            if isinstance(event, TokenOut):
                job = self._jobs[event.id]
                before = self._last.get(event.id)
                where, since = (
                    (report.gaps, before) if before is not None else (report.firsts, job.at)
                )
                where.setdefault(job.tenant, []).append(report.now - since)
                self._last[event.id] = report.now
                report.outputs[job.tenant] = report.outputs.get(job.tenant, 0) + 1
            elif isinstance(event, Finished):
                report.ended += 1
                report.most_preemptions = max(report.most_preemptions, event.num_preemptions)
                ended.append(self._jobs[event.id])
            elif isinstance(event, Failed):
                report.failed.append(event.error.code)
                ended.append(self._jobs[event.id])
        return ended
