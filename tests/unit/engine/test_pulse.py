"""What the page says of a process that works, waits, stops; and how long a step may take after those that were."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_engine import LocalEngine, request, write_tiny
from octavo.core.plan import Slice, StepPlan
from octavo.engine.page import Page
from octavo.engine.pulse import (
    BEAT_S,
    MARGIN,
    TURN_S,
    UNKNOWN_S,
    Pace,
    Pulse,
    WatchedCaches,
    Work,
)


def work(tokens: int, context: float, rows: int = 1, *, is_even: bool = False) -> Work:
    return Work(is_even, tokens, rows, context)


def plan(*pieces: tuple[int, int]) -> StepPlan:
    slices = [
        Slice(row=row, start=start, count=count, sample=True)
        for row, (start, count) in enumerate(pieces)
    ]
    return StepPlan(step=1, slices=tuple(slices))


def test_another_process_reads_what_this_one_writes() -> None:
    page = Page.create()
    code = (
        "import sys, time; from octavo.engine.page import Page; from octavo.engine.pulse import Pulse\n"
        "pulse = Pulse(Page(int(sys.argv[1])))\n"
        "with pulse.beating():\n    pulse.turn(7.0); print('on', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(page.fd)],
        pass_fds=(page.fd,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"on\n"
        first = page.read(time.monotonic())
        assert first.allowed_s == 7.0 and first.step_age_s > 0
        beats = set()
        while len(beats) < 3:
            beats.add(page.fields[0])
        child.stdin.close()
    assert page.read(time.monotonic() + 5).beat_age_s > 5 - 2 * BEAT_S
    fd = page.fd
    page.close()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_page_is_closed_once() -> None:
    page = Page.create()
    page.close()
    with open(os.devnull, "rb") as other:  # takes the number that the page had
        page.close()
        assert other.read(1) == b""


def test_rest_is_no_hang_and_a_turn_is_progress() -> None:
    page = Page.create()
    pulse = Pulse(page)
    assert page.read(time.monotonic() + 3600).step_age_s == 0.0
    pulse.turn()
    late = page.read(time.monotonic() + 3600)
    assert late.step_age_s > 3590 and late.allowed_s == TURN_S
    pulse.rest()
    assert page.read(time.monotonic() + 3600).step_age_s == 0.0
    page.close()


def test_layers_are_progress_and_steps_are_learned_from() -> None:
    page = Page.create()
    pulse = Pulse(page)
    asked: list[int] = []

    class Caches:
        def layer(self, index: int) -> int:
            asked.append(index)
            return 10 + index

    caches = WatchedCaches(Caches(), pulse)
    pulse.begin(plan((0, 12)))
    assert page.read(time.monotonic()).allowed_s == UNKNOWN_S
    moved = page.fields[1]
    assert caches.layer(3) == 13 and asked == [3]
    assert page.fields[1] > moved
    pulse.end(is_whole=False)
    pulse.begin(plan((0, 12)))
    assert page.read(time.monotonic()).allowed_s == UNKNOWN_S, "one that threw says nothing"
    pulse.end()
    pulse.begin(plan((0, 12)))
    assert page.read(time.monotonic()).allowed_s == TURN_S
    assert page.read(time.monotonic()).num_steps == 2
    page.close()


def test_turns_without_a_step_are_no_progress(tmp_path: Path) -> None:
    """A loop that spins over work that it never runs hangs, however fast it turns; one that runs it, or waits, does not."""
    local = LocalEngine(write_tiny(tmp_path))
    engine = local.engine
    page = Page.create()
    engine.pulse = Pulse(page)
    local.run([request("a", range(5), max_tokens=3)])
    assert page.read(time.monotonic()).num_steps == 3
    local.submit(request("b", range(5), max_tokens=3))
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda now: None  # type: ignore[method-assign]
    local.step()
    moved = page.fields[1]
    for _ in range(5):
        local.step()
    assert page.fields[1] == moved != 0.0
    engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    local.step()
    assert page.fields[1] > moved
    local.run()
    local.submit(request("c", range(5), max_tokens=1))
    engine.pulse.rest()
    local.run()
    assert page.fields[1] > moved, "woken by a request, it counts"
    page.close()


def test_work_of_a_plan() -> None:
    assert Work.of(plan((0, 12), (100, 1))) == work(13, 78 + 101, 2)
    assert Work.of(plan((7, 1), (100, 1))) == work(2, 8 + 101, 2, is_even=True)


def test_one_step_bounds_all_others() -> None:
    """Whatever tokens, rows and context cost, no step goes past its limit because of its size."""
    rng = random.Random(3)
    for _ in range(300):
        costs = [rng.choice([0.0, 1e-5, 1e-4, 1e-3, 1e-1]) for _ in range(4)]
        costs[3] = min(costs[3], costs[1] / 4096)  # a token of context costs little beside a token

        def longest(w: Work, costs: list[float] = costs) -> float:
            return costs[0] + costs[1] * w.tokens + costs[2] * w.rows + costs[3] * w.context

        pace = Pace()
        first = work(12, 78.0)  # the canary's
        pace.learn(first, longest_s=longest(first), total_s=longest(first))
        for _ in range(30):
            tokens = rng.choice([2, 12, 64, 512, 2048])
            rows = rng.randint(1, tokens - 1)
            step = work(tokens, tokens * rng.uniform(1, 30_000), rows)
            assert longest(step) <= pace.allowed(step)
            pace.learn(step, longest_s=longest(step), total_s=30 * longest(step))


def test_a_replayed_step_is_not_measured_by_layers() -> None:
    pace = Pace()
    pace.learn(work(12, 78), longest_s=0.02, total_s=2.0)
    even = work(1, 13, is_even=True)
    assert pace.allowed(even) == MARGIN * 2.0
    pace.learn(even, longest_s=0.02, total_s=1.5)  # the first of its size, seen layer by layer
    assert pace.allowed(even) == MARGIN * 1.5


def test_a_slow_moment_is_forgotten() -> None:
    pace = Pace()
    step = work(100, 5000.0)
    pace.learn(step, longest_s=9.0, total_s=9.0)
    assert pace.allowed(step) == MARGIN * 9.0
    for _ in range(100):
        pace.learn(step, longest_s=0.1, total_s=3.0)
    assert pace.allowed(step) == TURN_S
