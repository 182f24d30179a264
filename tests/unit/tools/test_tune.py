"""`octavo tune`: the simulation is the real scheduler, the search finds a known optimum, bad input is named."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from octavo.core.config import EngineConfig
from octavo.core.kvspec import KVGroup, KVSpec
from octavo.core.steptime import StepTime, attended
from octavo.meter.frames import Arrived, Ended, Named
from octavo.meter.frames import Machine as LogMachine
from octavo.meter.stepfile import StepFile
from octavo.scheduler.limits import Limits
from octavo.tools import cli
from octavo.tools.bench import sample
from octavo.tools.bench.stats import Record
from octavo.tools.flags import build, read_config_file
from octavo.tools.tune import report, traffic, tuning, verify
from octavo.tools.tune.calibrate import Calibration
from octavo.tools.tune.candidates import DEFAULTS, Candidate, space
from octavo.tools.tune.live import Live
from octavo.tools.tune.pool import pool_of
from octavo.tools.tune.search import MOST, Search, front
from octavo.tools.tune.simulate import Machine, Way, simulate
from octavo.tools.tune.slo import Asked, Score, Slo, score, slo_of
from octavo.tools.tune.steptimes import Sample, Seen, fit
from octavo.tools.tune.task import Task
from octavo.tools.tune.traffic import Job, Shape
from octavo.tools.tune.verify import Residual
from octavo.tools.tune.worlds import Measured
from sim import clocked

DEFAULT = Candidate(128, 512, None, "balanced", True)
GROUP = KVGroup(spec=KVSpec(num_kv_heads=1, head_dim=8), layers=(0,), num_blocks=4001)
LINE = StepTime(base_s=0.004, chunk_s=0.001, token_s=2e-4, context_s=1e-7)


class Line:
    """Steps that take what a line says, to the microsecond."""

    def __init__(self, line: StepTime = LINE) -> None:
        self.line = line

    def step_s(self, slices, rng) -> float:
        tokens = sum(piece.count for piece in slices)
        return self.line.predict(tokens, 0.0, is_mixed=tokens > len(slices))

    def gap_s(self, num_rows, rng) -> float:
        return 0.0

    def way(self, rng) -> Way:
        return Way(0.0, 0.0)

    def delay_s(self, rng) -> float:
        return 0.0

    def slowness(self, rng) -> None:
        return None


class FakeWorld:
    """A machine that is a line."""

    name = "a line"
    longest_step = 4096
    num_seeds = 1
    others = None

    def __init__(self, line: StepTime = LINE, **limits: Any) -> None:
        self.times = Line(line)
        self.default = DEFAULT
        self.limits = Limits(
            **({"max_num_seqs": 128, "max_num_batched_tokens": 512, "max_model_len": 8192} | limits)
        )

    def machine(self, candidate: Candidate) -> Machine:
        return Machine(candidate.limits(self.limits), (GROUP,), candidate.enable_prefix_caching)

    def learned(self, seen) -> None:
        return None

    def facts(self) -> dict[str, object]:
        return {"source": "a line"}


def drawn(rate: float = 8.0, count: int = 24, **shape: Any) -> list[Job]:
    lengths = {"inputs": sample.parse_lengths("100-600"), "outputs": sample.parse_lengths("4-16")}
    return traffic.draw(Shape(rate, **(lengths | shape)), count, 1)


def task(jobs: list[Job], **given: Any) -> Task:
    values = {
        "config": EngineConfig(),
        # Given, so that few flags are left to search.
        "values": {
            "performance_mode": "balanced",
            "enable_prefix_caching": True,
            "max_num_seqs": 128,
        },
        "jobs": jobs,
        "slo": slo_of(Asked(2000, 40, {})),
        "target": None,
        "price": 3.6,
        "calibration_s": 1.0,
        "live_s": 0.0,
        "live_candidates": 2,
        "tolerance": 0.2,
        "seed": 0,
    }
    return Task(**(values | given))


FIXED = {
    "performance_mode": "balanced",
    "enable_prefix_caching": True,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 512,
    "max_itl_ms": None,
}
"""No flag is left to search."""


def quiet(_: str) -> None:
    pass


# -- the simulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seqs", [4, 32])
def test_a_simulation_is_the_scheduler_on_a_machine_with_a_clock(seqs: int) -> None:
    rng = random.Random(seqs)
    lengths = [(rng.random() * 3, rng.randint(1, 900), rng.randint(1, 50)) for _ in range(40)]
    jobs = sorted(Job(at, prompt, output) for at, prompt, output in lengths)
    line = StepTime(base_s=0.003, token_s=1e-4)
    machine = clocked.Machine(line, blocks=4000, noise=0.0, max_num_seqs=seqs)
    expected = machine.run([clocked.Job(j.at, "", j.prompt_len, j.output_len) for j in jobs])
    limits = Limits(max_num_seqs=seqs, max_num_batched_tokens=512, max_model_len=16384)
    found = simulate(jobs, Machine(limits, (GROUP,)), Line(line))
    assert found.num_steps == expected.scheduler.counters.num_steps
    firsts = [record.ttft for record in found.records]
    gaps = [gap for record in found.records for gap in record.gaps]
    assert sorted(firsts) == pytest.approx(sorted(expected.firsts[""]), abs=1e-9)
    assert sorted(gaps) == pytest.approx(sorted(expected.gaps[""]), abs=1e-9)
    assert [r.output_tokens for r in found.records] == [j.output_len for j in jobs]


def test_the_same_arguments_simulate_the_same() -> None:
    machine = FakeWorld().machine(DEFAULT)
    one, two = (simulate(drawn(), machine, Line(), 3) for _ in range(2))
    assert one == two


def test_shared_prefixes_are_found_and_are_not_when_caching_is_off() -> None:
    jobs = drawn(prefix_len=96, num_prefixes=2)
    machine = FakeWorld().machine(DEFAULT)
    shared = simulate(jobs, machine, Line()).cached_share
    assert (
        0.1
        < shared
        < sum(min(96, job.prompt_len) for job in jobs) / sum(job.prompt_len for job in jobs)
    )
    off = machine._replace(enable_prefix_caching=False)
    assert simulate(jobs, off, Line()).cached_share == 0
    assert simulate(drawn(), machine, Line()).cached_share == 0


def test_a_full_queue_and_a_small_cache_are_the_schedulers_own() -> None:
    machine = FakeWorld(max_num_waiting=5).machine(DEFAULT._replace(max_num_seqs=4))
    jobs = [Job(0.0, 200, 20) for _ in range(30)]
    found = simulate(jobs, machine, Line())
    assert sum(record.error is not None for record in found.records) == 25
    small = KVGroup(spec=GROUP.spec, layers=(0,), num_blocks=1 + 40)
    tight = simulate(
        [Job(0.0, 150, 100) for _ in range(4)],
        FakeWorld().machine(DEFAULT)._replace(groups=(small,)),
        Line(),
    )
    assert tight.most_blocks <= 40
    assert all(len(record.chunk_times) == 100 for record in tight.records)


# -- step times --------------------------------------------------------------------------------------------------


def recorded(count: int = 1500, noise: float = 0.03) -> list[Sample]:
    """Reading the weights takes 5 ms; beyond 40 tokens, multiplying takes longer."""
    rng = random.Random(0)
    samples = []
    for _ in range(count):
        decodes = rng.randint(1, 60)
        chunk = rng.choice([0, 0, rng.randint(2, 500)])
        context = decodes * rng.randint(1, 800)
        seconds = max(5e-3, 1.25e-4 * (decodes + chunk)) + 2e-7 * context + (chunk > 0) * 1e-3
        slow = 8.0 if rng.random() < 0.01 else 1.0
        gap = 1e-4 + 1e-5 * decodes
        samples.append(Sample(decodes, chunk, context, slow * seconds * rng.gauss(1, noise), gap))
    return samples


def seen(samples: list[Sample], *, is_traffic: bool = True, since: float = 0.0) -> Seen:
    begins = [since + 0.01 * index for index in range(len(samples))]
    return Seen(since, samples, begins, [], [], [], is_traffic)


def test_a_fit_tells_steps_with_a_knee() -> None:
    found = fit([seen(recorded())])
    for tokens, context in ((1, 500), (8, 3000), (30, 9000), (60, 30_000)):
        expected = max(5e-3, 1.25e-4 * tokens) + 2e-7 * context
        assert found.predict(tokens, context, is_mixed=False) == pytest.approx(expected, rel=0.08)
    for tokens in (64, 200, 500, 2000):
        expected = max(5e-3, 1.25e-4 * tokens) + 1e-3
        assert found.predict(tokens, 0, is_mixed=True) == pytest.approx(expected, rel=0.1)
    assert found.error < 0.06
    assert found.gap == pytest.approx((1e-4, 1e-5), rel=0.05)
    for pool in found.ratios:
        assert max(pool) > 5  # the tail is there, and draws nothing off
        assert pool[len(pool) // 2] == pytest.approx(1, abs=0.03)


def test_what_varies_is_drawn_from_the_traffic_and_not_from_a_busier_load() -> None:
    """Many callers at once slow the steps down that they come with; the traffic has none of that."""
    busy = [sample._replace(elapsed_s=1.5 * sample.elapsed_s) for sample in recorded()]
    calm = recorded(400)
    found = fit([seen(calm), seen(busy, is_traffic=False)])
    told = sum(map(found.expected_s, calm))
    assert told == pytest.approx(sum(sample.elapsed_s for sample in calm), rel=0.03)
    # Others come for a while: the pace is kept apart from what varies step by step, and comes back for as long.
    burst = [
        s._replace(elapsed_s=s.elapsed_s * (3 if 150 <= i < 250 else 1)) for i, s in enumerate(calm)
    ]
    paced = fit([seen(burst)])
    assert [round(w / min(paced.windows)) for w in paced.windows] == [1] * 3 + [3] * 2 + [1] * 3
    slowness = paced.slowness(random.Random(1))
    assert [slowness(at) for at in (0.0, 4.0)] == [slowness(at) for at in (4.0, 0.1)]
    few = fit([seen(calm[:10]), seen(busy, is_traffic=False)])
    assert sum(map(few.expected_s, calm)) > 1.3 * told


# -- traffic -----------------------------------------------------------------------------------------------------


def write(path: Path, *lines: object) -> str:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return str(path)


def row(at: float = 0.0, prompt: int = 40, output: int = 4, **more: object) -> dict[str, object]:
    return {"timestamp": at, "prompt_len": prompt, "output_len": output, **more}


def test_a_trace_is_read_in_order_and_from_its_begin(tmp_path: Path) -> None:
    shared = {"prefix_id": "a", "prefix_len": 33}
    path = write(
        tmp_path / "t", row(1005.0, 80), "", row(1000.0, 50, 7, **shared), row(1002.0, 60, **shared)
    )
    jobs = traffic.read_trace(path, 10)
    assert [(job.at, job.prompt_len) for job in jobs] == [(0, 50), (2, 60), (5, 80)]
    assert jobs[0].names == jobs[1].names and len(jobs[0].names) == 16  # two whole blocks
    works = traffic.work_of(jobs, 0)
    assert works[0].prompt[:32] == works[1].prompt[:32] != works[2].prompt[:32]
    assert [len(work.prompt) for work in works] == [50, 60, 80]
    assert works[0].prompt[32:50] != works[1].prompt[32:50]
    assert traffic.rate_of(traffic.scaled(jobs, 2)) == pytest.approx(2 * traffic.rate_of(jobs))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty"),
        (["{"], "line 1"),
        ([row(prompt=-3)], "prompt_len is -3"),
        ([row(output=0)], "output_len is 0"),
        ([row(prompt=1 << 40)], "prompt_len is 1099511627776"),
        ([row(), row(prefix_id="a", prefix_len=41)], "line 2: prefix_len is 41"),
        ([row(prefix_len=16)], "prefix_id and prefix_len"),
        ([row(color="red")], "color"),
        ([{"timestamp": 0, "prompt_len": 3}], "output_len"),
        ([row(), row()], "come at once"),
    ],
)
def test_bad_traces_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[object], said: str
) -> None:
    words = ["tune", "--trace", write(tmp_path / "t.jsonl", *lines), "--ttft-p99-ms", "500"]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ttft-p99-ms", "5"], "0 of --trace, --from-step-log and --request-rate"),
        (["--ttft-p99-ms", "5", "--request-rate", "1", "--trace", "x"], "2 of --trace"),
        (["--request-rate", "1"], "nothing is asked for"),
        (["--request-rate", "1", "--goodput", "speed:5"], "--goodput 'speed:5'"),
        (["--request-rate", "1", "--goodput", "ttft:-5"], "--goodput 'ttft:-5'"),
        (["--request-rate", "-1", "--ttft-p99-ms", "5"], "--request-rate"),
        (["--request-rate", "1", "--ttft-p99-ms", "0"], "--ttft-p99-ms"),
        (["--request-rate", "1", "--ttft-p99-ms", "5", "--input-len", "-4"], "'-4'"),
        (["--request-rate", "1", "--ttft-p99-ms", "5", "--input-len", "9-4"], "'9-4'"),
        (
            ["--request-rate", "1", "--ttft-p99-ms", "5", "--input-len", "4000"],
            "exceed the context of 2048",
        ),
        (["--request-rate", "1", "--ttft-p99-ms", "5", "--device", "abacus"], "abacus"),
        (["nowhere", "--request-rate", "1", "--ttft-p99-ms", "5"], "nowhere"),
        (["--from-step-log", "nowhere", "--ttft-p99-ms", "5"], "has 0 requests"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [f"{w}" for w in words]
    joined = [
        f"{a}={b}" if a == "--input-len" else None for a, b in zip(words, words[1:], strict=False)
    ]
    for at, text in enumerate(joined):
        if text:
            words = [*words[:at], text, *words[at + 2 :]]
    assert cli.main(["tune", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_step_log_is_traffic(tmp_path: Path) -> None:
    machine = LogMachine(model="m", policy="fair", limits={}, groups=(), enable_prefix_caching=True)
    file = StepFile(tmp_path, 1 << 20, machine)
    for number in range(4):
        name = f"r{number}"

        def come(n: int) -> Arrived:
            return Arrived(
                n, f"r{n}", 10.0 + n, 40, 99, 0, 0, "", 1.0, None, None, 0, 0, False, False
            )

        file.arrived(name, come)
        file.put(Named(number, 0, b"prefix-1" + b"prefix-2"))
        reason = "abort" if number == 2 else "stop"
        file.ended(name, Ended(number, "step", reason, False, 5 + number, 20.0))
    file.close()
    jobs = traffic.read_step_log(str(tmp_path), 10)
    assert [(round(job.at, 6), job.prompt_len, job.output_len) for job in jobs] == [
        (0, 40, 5),
        (1, 40, 6),
        (3, 40, 8),
    ]
    assert {job.names for job in jobs} == {b"prefix-1prefix-2"}
    assert [job.output_len for job in traffic.read_step_log(str(tmp_path), 2)] == [6, 8]


# -- objectives --------------------------------------------------------------------------------------------------


def answer(ttft: float, gap: float, count: int = 11, error: str | None = None) -> Record:
    times = tuple(ttft + gap * index for index in range(count))
    return Record(
        index=0,
        due=0.0,
        sent=0.0,
        done=times[-1],
        chunk_times=times,
        output_tokens=count,
        error=error,
    )


def test_percentiles_and_single_requests_are_judged() -> None:
    slo = slo_of(Asked(200, 30, {}))
    good = score([answer(0.1, 0.02)] * 10, slo, 5.0)
    assert good.meets and good.goodput == 5.0 and good.ttft_p99 == pytest.approx(100)
    slow = score([answer(0.1, 0.02)] * 5 + [answer(0.1, 0.05)] * 5, slo, 5.0)
    assert slow.goodput == 2.5 and slow.missed == ("p99 ITL 50 ms > 30 ms",)
    failed = score([answer(0.1, 0.02)] * 9 + [answer(0.1, 0.02, error="x")], slo, 5.0)
    assert failed.missed == ("1 of 10 requests failed",) and failed.good_share == 0.9
    each = slo_of(Asked(None, None, {"ttft": 200.0, "tpot": 30.0}))
    assert not each.is_implied
    assert (
        "50.0% of requests met"
        in score([answer(0.1, 0.02), answer(0.3, 0.02)], each, 1.0).missed[0]
    )
    assert slo_of(Asked(None, 30, {})).is_implied


# -- the search --------------------------------------------------------------------------------------------------


def judged(meets: bool, rate: float) -> Score:
    return Score(
        rate=rate,
        goodput=rate if meets else 0.0,
        good_share=float(meets),
        ttft_p99=1.0,
        itl_p99=1.0,
        tokens_per_s=rate,
        good_tokens_per_s=rate,
        failed=0,
        missed=() if meets else ("late",),
    )


def test_a_known_optimum_is_found() -> None:
    def most(c: Candidate) -> float:
        off = abs(math.log2(c.max_num_seqs / 32)) + abs(math.log2(c.max_num_batched_tokens / 2048))
        return 5 - 0.5 * off + (c.performance_mode == "throughput") - (c.max_itl_ms is None)

    search = Search(lambda c, factor: judged(factor <= most(c), factor))
    slo = slo_of(Asked(500, 50, {}))
    tried = space(DEFAULT, slo, set(), 4096)
    found = search.run(DEFAULT, tried)
    best = found.best
    assert (best.max_num_seqs, best.max_num_batched_tokens) == (32, 2048)
    assert best.performance_mode == "throughput" and best.max_itl_ms is not None
    assert found.capacity[best] == pytest.approx(6, rel=0.05)
    assert found.capacity[DEFAULT] == pytest.approx(most(DEFAULT), rel=0.05)
    whole = math.prod(len(values) for values in tried.values())
    assert len(found.tried) < whole / 5


def test_what_changes_nothing_leaves_the_defaults_and_what_is_given_stays() -> None:
    search = Search(lambda c, factor: judged(factor <= 2, factor))
    slo = slo_of(Asked(500, None, {}))
    assert search.run(DEFAULT, space(DEFAULT, slo, set(), 4096)).best == DEFAULT
    fixed = space(DEFAULT, slo, {"max_num_seqs"}, 4096)
    assert "max_num_seqs" not in fixed and fixed["max_itl_ms"] == (None,)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 0.0), (1e9, MOST), (0.3, 0.3)])
def test_capacity_has_two_ends(limit: float, expected: float) -> None:
    search = Search(lambda c, factor: judged(factor <= limit, factor))
    assert search.capacity(DEFAULT) == pytest.approx(expected, rel=0.05)


def test_the_front_has_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 6.0), (0.5, 2.0), (0.4, 2.5)]
    assert front(points) == [4, 2, 3]


# -- all of it, on a machine that is a line -----------------------------------------------------------------------


def test_a_limit_between_tokens_is_kept_by_flags_that_the_defaults_do_not_have() -> None:
    # A chunk of 128 tokens beside decodes takes over 30 ms; nothing above 22 is asked for.
    asked = task(drawn(), slo=slo_of(Asked(2000, 22, {})))
    found = tuning.tune_in(FakeWorld(), asked, quiet)
    default = next(row for row in found.rows if row.flags == DEFAULTS)
    best = next(row for row in found.rows if row.flags == found.flags)
    assert best.most_rate > 2 * default.most_rate
    assert best.simulated.itl_p99 < default.simulated.itl_p99
    assert found.recommended.keys() & {"max_itl_ms", "max_num_batched_tokens"}
    assert found.recommended["performance_mode"] == "balanced"  # what was given is kept
    assert found.chosen_by == "simulation" and found.is_confirmed is None
    assert best.cost_per_million == pytest.approx(1e6 / best.simulated.tokens_per_s / 3600 * 3.6)
    on_front = [point for point in found.points if point.is_on_front]
    assert min(p.cost_per_million for p in on_front) == min(
        p.cost_per_million for p in found.points
    )
    assert max(p.score.goodput for p in on_front) == max(p.score.goodput for p in found.points)


def test_what_cannot_be_met_is_said_with_the_rate_at_which_it_could() -> None:
    found = tuning.tune_in(
        FakeWorld(), task(drawn(rate=80.0), slo=slo_of(Asked(300, 200, {}))), quiet
    )
    assert not found.is_met
    assert "cannot be met at" in found.verdict and "share the traffic among" in found.verdict
    never = tuning.tune_in(FakeWorld(), task(drawn(), slo=slo_of(Asked(2000, 3, {}))), quiet)
    assert not never.is_met
    assert "cannot be met, at whatever rate" in never.verdict and "p99 ITL" in never.verdict


def live_of(records: list[Record], slo: Slo, rate: float) -> Live:
    return Live(score(records, slo, rate), records, None, ())


def late(records: list[Record], by: float) -> list[Record]:
    """The same, each token so many times as late."""

    def moved(record: Record) -> Record:
        times = [record.sent + by * (at - record.sent) for at in record.chunk_times]
        return replace(record, chunk_times=tuple(times), done=times[-1])

    return list(map(moved, records))


@pytest.mark.parametrize("is_as_said", [True, False])
def test_live_runs_confirm_a_simulation_or_overrule_it(
    monkeypatch: pytest.MonkeyPatch, is_as_said: bool
) -> None:
    world = FakeWorld()
    values = {name: value for name, value in FIXED.items() if name != "max_itl_ms"}
    asked = task(drawn(), slo=slo_of(Asked(2000, 22, {})), live_s=1000.0, values=values)

    def measure(values: dict[str, object], part: list[Job], slo: Slo, seed: int) -> Live:
        candidate = world.default._replace(**values)
        records = simulate(part, world.machine(candidate), world.times).records
        # Live, the flags that were found do worse than said, and the defaults as well as can be.
        by = 1.0 if is_as_said else 0.1 if candidate == world.default else 9.0
        return live_of(late(records, by), slo, 8.0)

    monkeypatch.setattr(tuning.live, "measure", measure)
    found = tuning.tune_in(world, asked, quiet)
    assert found.is_confirmed is is_as_said
    assert found.verdict.startswith("CONFIRMED" if is_as_said else "UNCONFIRMED")
    assert found.chosen_by == ("simulation" if is_as_said else "live runs")
    assert bool(found.flags) is is_as_said
    assert sum(row.live is not None for row in found.rows) == 2
    assert "p50 TTFT ms" in report.to_text(found)


def test_all_requests_good_confirms_nothing_where_times_are_other_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Far from the knee any simulation has the goodput right."""
    world = FakeWorld()
    slo = slo_of(Asked(60_000, 5000, {}))
    asked = task(drawn(rate=1.0), slo=slo, live_s=1000.0, values=dict(FIXED))

    def measure(values: dict[str, object], part: list[Job], slo: Slo, seed: int) -> Live:
        records = simulate(part, world.machine(world.default), world.times).records
        return live_of(late(records, 1.5), slo, traffic.rate_of(part))

    monkeypatch.setattr(tuning.live, "measure", measure)
    found = tuning.tune_in(world, asked, quiet)
    assert all(row.residual.off == 0 for row in found.rows if row.residual is not None)
    assert found.is_confirmed is False and "p50 TTFT by -33%" in found.verdict


def test_where_live_runs_tie_and_the_simulation_was_wrong_the_defaults_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = FakeWorld()
    jobs = drawn(rate=80.0)
    asked = task(jobs, slo=slo_of(Asked(300, 200, {})), live_s=1000.0, values=dict(FIXED))

    def measure(values: dict[str, object], part: list[Job], slo: Slo, seed: int) -> Live:
        records = simulate(part, world.machine(world.default), world.times).records
        return live_of(late(records, 0.01), slo, 80.0)

    monkeypatch.setattr(tuning.live, "measure", measure)
    found = tuning.tune_in(world, asked, quiet)
    assert found.is_confirmed is False and found.flags == ""
    assert found.is_met and "held in the live run at" in found.verdict


def test_a_machine_that_was_another_when_calibrated_is_learned_from_live_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calibration met steps twice as slow as live runs do: the second round has the live runs' steps."""
    monkeypatch.setattr(tuning, "ENOUGH", 1)
    slo = slo_of(Asked(2000, 60, {}))
    asked = task(drawn(rate=4.0, count=20), slo=slo, live_s=1000.0, values=dict(FIXED))
    fast = FakeWorld()
    limits = fast.limits
    machine = Machine(limits, (GROUP,))
    slow = seen_line(2.0, 0.0)
    world = Measured(Calibration(machine, (slow,)))
    runs = []

    def measure(values: dict[str, object], part: list[Job], slo: Slo, seed: int) -> Live:
        candidate = world.default
        runs.append(values)
        records = simulate(part, fast.machine(candidate), fast.times).records
        return live_of(records, slo, 4.0)._replace(seen=seen_line(1.0, 5.0))

    monkeypatch.setattr(tuning.live, "measure", measure)
    found = tuning.tune_in(world, asked, quiet)
    assert found.num_rounds == len(runs) == 2
    assert found.is_confirmed, found.verdict
    said = next(note for note in found.notes if note.startswith("first round"))
    assert "steps took 0.5" in said


def seen_line(by: float, since: float) -> Seen:
    rng = random.Random(1)
    samples = []
    for _ in range(400):
        decodes, chunk = rng.randint(1, 20), rng.choice([0, 0, rng.randint(2, 500)])
        seconds = by * LINE.predict(decodes + chunk, 0.0, is_mixed=chunk > 0)
        samples.append(Sample(decodes, chunk, 0.0, seconds, None))
    return seen(samples, since=since)


# -- what a live run and its simulation differ by ------------------------------------------------------------------


def test_a_residual_tells_the_machine_from_the_simulation() -> None:
    """Steps three times as long for a while: no fault of the simulation, and on such a machine it is right."""
    jobs = drawn(rate=3.0, count=24)
    machine = Machine(FakeWorld().limits, (GROUP,))
    times = fit([seen_line(1.0, 0.0)])
    ran = Logged(times)

    def slowness(at: float) -> float:
        ran.begins.append(at)
        return slow(at)

    def slow(at: float) -> float:
        return 3.0 if 1 < at < 6 else 1.0

    records = simulate(jobs, machine, ran, 9, slowness).records
    log = Seen(0.0, ran.samples(slow), ran.begins, [], [], [], True)
    slo = slo_of(Asked(500, 40, {}))
    live = score(records, slo, traffic.rate_of(jobs))
    _, found = verify.residual(jobs, machine, times, slo, (live, records, log), others=0.9)
    assert found.differing(0.2, live.goodput)
    assert found.steps > 1.3
    assert max(map(abs, found.as_it_was.values())) < 0.15
    assert "so the machine changed" in verify.cause(found, 0.2, 0.1)
    assert "others used 0.9 cores meanwhile and 0.1 then" in verify.cause(found, 0.2, 0.1)
    calm = simulate(jobs, machine, times, 9).records
    live = score(calm, slo, traffic.rate_of(jobs))
    _, found = verify.residual(jobs, machine, times, slo, (live, calm, None))
    assert not found.differing(0.2, live.goodput)
    assert found.rate == 1.0 and found.steps is None


class Logged:
    """What was asked of step times, as a log would have it: begins are put together from what was answered."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.steps: list[tuple[int, int, float, float]] = []
        self.begins: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def step_s(self, slices, rng) -> float:
        seconds = self.of.step_s(slices, rng)
        chunk = sum(piece.count for piece in slices if piece.count > 1)
        context = sum(p.start + 1 if p.count == 1 else attended(p.start, p.count) for p in slices)
        rows = sum(piece.count == 1 for piece in slices)
        self.steps.append((rows, chunk, context, seconds))
        return seconds

    def samples(self, slowness) -> list[Sample]:
        found = []
        for (rows, chunk, context, seconds), begun in zip(self.steps, self.begins, strict=True):
            found.append(Sample(rows, chunk, context, seconds * slowness(begun), None))
        return found


def test_at_the_knee_goodput_is_compared_by_the_rate() -> None:
    """A little faster or slower gives or takes half of it."""
    at_knee = Residual(off=0.6, low=2.0, high=2.4, rate=1.1, times_ms={}, quantiles_ms={})
    assert at_knee.goodput_agrees(0.2, 1.4)
    assert not replace(at_knee, rate=1.3).goodput_agrees(0.2, 1.4)
    assert not replace(at_knee, rate=None).goodput_agrees(0.2, 1.4)
    assert replace(at_knee, rate=None).goodput_agrees(0.2, 2.1)


# -- the KV cache --------------------------------------------------------------------------------------------------


def test_the_least_kv_cache_is_found_and_what_more_would_bring() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1600)
    machine = Machine(limits, (GROUP,))  # 4001 blocks, of which one sequence takes 101
    found = pool_of(machine, 2.0, lambda factor, share: share >= 0.25 and factor <= 2.0)
    assert 0.25 <= found.least_bytes / found.num_bytes < 0.4  # whole MiB of a small cache
    assert found.is_spare and found.doubled is None
    tight = pool_of(machine, 2.0, lambda factor, share: factor <= 2.0 * share)
    assert tight.least_bytes == tight.num_bytes and not tight.is_spare
    assert tight.doubled == pytest.approx(4.0, rel=0.1)
    # Never less than the longest sequence needs, or a server would not start with it.
    least = pool_of(machine, 2.0, lambda factor, share: True).least_bytes
    assert least >= 101 * GROUP.bytes_per_block


def test_a_small_kv_cache_limits_a_real_simulation() -> None:
    jobs = [Job(index / 20, 200, 40) for index in range(20)]
    small = replace(GROUP, num_blocks=50)

    class Small(FakeWorld):
        def machine(self, candidate: Candidate) -> Machine:
            return Machine(candidate.limits(self.limits), (small,), False)

    asked = task(jobs, slo=slo_of(Asked(400, 200, {})), values=dict(FIXED))
    found = tuning.tune_in(Small(max_model_len=256), asked, quiet)
    assert found.pool is not None and found.pool.doubled > found.pool.capacity
    assert any("the KV cache is the limit" in note for note in found.notes)
    ample = tuning.tune_in(FakeWorld(max_model_len=1024), asked, quiet)
    assert ample.pool is not None and ample.pool.is_spare
    assert any(f"--kv-cache-memory-bytes {ample.pool.least_bytes}" in n for n in ample.notes)


# -- what is written ----------------------------------------------------------------------------------------------


def test_all_that_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="PNGs need octavo[plots]")
    words = ["tune", "benchmarks/shapes/qwen3-0.6b", "--device", "l4", "--request-rate", "4"]
    root = Path(__file__).resolve().parents[3]
    words[1] = str(root / words[1])
    words += ["--input-len", "100-300", "--output-len", "4-12", "--num-prompts", "20"]
    words += ["--ttft-p99-ms", "400", "--itl-p99-ms", "30", "--device-price", "1.1"]
    words += ["--max-num-seqs", "64", "--performance-mode", "balanced"]
    code = cli.main([*words, "--out", str(tmp_path / "new" / "folder")])
    folder = tmp_path / "new" / "folder"
    text = capsys.readouterr().out
    found = json.loads((folder / "tune.json").read_text())
    assert code == (0 if found["is_met"] else 1)
    assert found["calibration"]["source"] == "roofline"
    assert found["verdict"] in text and "octavo serve " in text and "cost/M tok" in text
    values = read_config_file(str(folder / "serve.yaml"))
    assert build(EngineConfig, values).model == words[1]
    csv_lines = (folder / "tune.csv").read_text().splitlines()
    assert len(csv_lines) == len(found["points"]) + 1
    page = (folder / "tune.html").read_text()
    assert "<svg" in page and "light-dark(" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["tune", "--request-rate", "1", "--ttft-p99-ms", "5", "--out", str(tmp_path)]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "octavo[plots]" in error and "--no-png" in error
    assert not list(tmp_path.iterdir())


def test_texts_are_escaped_in_a_page() -> None:
    asked = task(drawn(count=20), config=EngineConfig(model="<script>alert(1)</script>"))
    world = FakeWorld()
    found = tuning.Report
    row_score = judged(True, 4.0)
    made = found(
        model=asked.config.model,
        device="x",
        slo=asked.slo,
        traffic=traffic_of_jobs(asked.jobs),
        calibration=world.facts(),
        recommended={},
        flags="",
        chosen_by="simulation",
        verdict="<b>",
        is_met=True,
        is_confirmed=None,
        rows=(
            report.Row(
                flags=DEFAULTS, values={}, simulated=row_score, cost_per_million=1.0, most_rate=1.0
            ),
        ),
        points=(),
        num_simulations=1,
        notes=("<i>",),
        device_price=None,
        environment={},
    )
    page = report.page(made, report.charts(made, DEFAULTS, DEFAULTS))
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page


def traffic_of_jobs(jobs: list[Job]) -> dict[str, float]:
    return report.traffic_of([(j.prompt_len, j.output_len, 0) for j in jobs], 4.0)
