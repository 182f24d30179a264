"""What `octavo tune` reads out of a step log beside what callers saw, and how the simulation draws it again."""

from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from octavo.core.kvspec import KVGroup, KVSpec
from octavo.core.plan import Slice
from octavo.meter.frames import VERSION, Arrived, Head, Machine, Ran
from octavo.meter.stepfile import Run
from octavo.scheduler.limits import Limits
from octavo.tools.bench.stats import Record
from octavo.tools.tune import cores, observe, simulate
from octavo.tools.tune.observe import WARM_UP_STEPS, Span
from octavo.tools.tune.simulate import Way
from octavo.tools.tune.steptimes import LEAST_STEPS, fit
from octavo.tools.tune.traffic import Job

STEP_S, GAP_S = 0.010, 0.002


def come(number: int, at: float, num_prompt: int) -> Arrived:
    return Arrived(
        number,
        f"r{number}",
        at,
        num_prompt,
        99,
        0,
        0,
        "",
        1.0,
        None,
        None,
        0,
        0,
        False,
        False,
        at + 1e-4,
    )


def ran(step: int, begun: float, slices: list[tuple[int, int, int]], gap_s: float = GAP_S) -> Ran:
    numbers, starts, counts = ([piece[i] for piece in slices] for i in range(3))
    return Ran(step, begun, begun, STEP_S, gap_s, 9, numbers, starts, counts)


def logged() -> Run:
    """Warm-up, then a request of 40 tokens that wakes the loop, and one of 50 that comes in mid-step."""
    head = Head(
        VERSION,
        "run",
        0,
        0.0,
        0.0,
        Machine(model="m", policy="fair", limits={}, groups=(), enable_prefix_caching=True),
        {},
    )
    frames = [head, come(0, 0.0, 8)]
    frames += [ran(i, i * (STEP_S + GAP_S), [(0, 8 + i, 1)]) for i in range(WARM_UP_STEPS)]
    frames += [come(1, 5.001, 40), ran(90, 5.004, [(1, 0, 40)], gap_s=4.0)]
    frames += [come(2, 5.010, 50), ran(91, 5.016, [(1, 40, 1), (2, 0, 50)])]
    frames += [ran(92 + i, 5.028 + 0.012 * i, [(1, 41 + i, 1), (2, 50 + i, 1)]) for i in range(3)]
    return Run(head, True, frames)


def answer(sent: float, prompt: int, times: tuple[float, ...], tokens: int) -> Record:
    return Record(
        index=0,
        due=sent,
        sent=sent,
        done=times[-1],
        chunk_times=times,
        prompt_tokens=prompt,
        output_tokens=tokens,
    )


def test_ways_wakes_and_delays_are_read_from_both_sides() -> None:
    ends = [5.014, 5.026, 5.038, 5.050, 5.062]
    first = answer(5.0, 40, tuple(end + 0.003 for end in ends), 5)
    # The third and the fourth token of the other came in one piece.
    other = answer(5.008, 50, (5.027, 5.040, 5.0625), 4)
    stranger = answer(5.008, 50, (5.02, 5.03), 2)
    seen = observe.seen_of(logged(), [first, stranger, other], Span(4.0, 5.039), is_traffic=True)
    assert [tuple(round(x, 6) for x in way) for way in seen.ways] == [
        (0.001, 0.003, 0.0),
        (0.002, 0.001, 0.0),
    ]
    assert seen.wakes == [pytest.approx(0.003)]  # the other found the loop awake
    assert seen.delays == pytest.approx([0.003] * 4 + [0.002, 0.0125, 0.0005])
    assert [(s.num_decodes, s.num_chunk_tokens) for s in seen.samples] == [(0, 40), (1, 50), (2, 0)]
    assert seen.begins == pytest.approx([5.004, 5.016, 5.028])
    assert seen.samples[0].gap_s == pytest.approx(GAP_S)
    assert seen.since == 4.0


class Slow:
    """Ways and delays of which each is told."""

    def step_s(self, slices, rng) -> float:
        return 0.010

    def gap_s(self, num_rows, rng) -> float:
        return 0.0

    def way(self, rng) -> Way:
        return Way(0.1, 0.005, 0.02)

    def slowness(self, rng) -> None:
        return None

    def delay_s(self, rng) -> float:
        return rng.choice((0.001, 0.025))


def test_a_simulation_draws_ways_wakes_and_delays() -> None:
    group = KVGroup(spec=KVSpec(num_kv_heads=1, head_dim=8), layers=(0,), num_blocks=200)
    limits = Limits(max_num_seqs=4, max_num_batched_tokens=512, max_model_len=1024)
    machine = simulate.Machine(limits, (group,))
    (record,) = simulate.simulate([Job(1.0, 100, 60)], machine, Slow()).records
    assert record.ttft == pytest.approx(0.1 + 0.02 + 0.010 + 0.005)
    assert record.output_tokens == 60
    # Who reads 25 ms late finds two steps of 10 ms in one piece, and no token comes before the one before it.
    assert 20 < len(record.chunk_times) < 55
    assert min(record.gaps) > 0
    end = 1.0 + 0.12 + 60 * 0.010
    assert end < record.chunk_times[-1] <= end + 0.025 + 1e-9


def test_what_others_use_of_the_cores_is_told_apart_from_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"_busy_s": [100.0, 108.0], "_own_s": [3.0, 6.0]}
    for name, values in told.items():
        monkeypatch.setattr(cores, name, iter(values).__next__)
    clock = SimpleNamespace(monotonic=iter([0.0, 4.0, 4.0]).__next__)
    monkeypatch.setattr(cores, "time", clock)
    with cores.watched() as seen:
        pass
    assert seen.others == pytest.approx((8 - 3) / 4)
    monkeypatch.setattr(cores, "_busy_s", lambda: None)
    monkeypatch.setattr(cores, "_own_s", lambda: 1.0)
    with cores.watched() as seen:
        pass
    assert seen.others is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_this_machines_cores_are_read() -> None:
    busy, own = cores._busy_s(), cores._own_s()
    code = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert cores._own_s() - own >= 0.19
    assert busy is not None and cores._busy_s() - busy >= 0.15


def test_a_fit_without_anything_around_the_engine_still_draws() -> None:
    samples = observe.samples_of(logged())[0]
    many = [samples[i % len(samples)] for i in range(LEAST_STEPS)]
    seen = observe.seen_of(logged(), [], is_traffic=True)
    seen = seen._replace(samples=many, begins=[5.0 + 0.01 * i for i in range(len(many))])
    found = fit([seen])
    rng = random.Random(0)
    assert found.way(rng) == Way(0.0, 0.0, 0.0)
    assert found.delay_s(rng) == 0.0
    few = Slice(row=0, start=0, count=3, sample=True)
    assert found.step_s([few], rng) > 0  # fewer tokens than any measured step had
