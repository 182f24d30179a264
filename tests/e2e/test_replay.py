"""A mixed run of the real engine, written down and told to another scheduler: the plans are the same, step by step."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from local_engine import LocalEngine, request, write_tiny
from octavo.engine.ipc import ResetPrefixCache
from octavo.engine.replay import Replay
from octavo.meter.frames import Planned, Ran
from octavo.meter.stepfile import Run, read_runs, read_steplog
from overcommit import overcommit

SMALL = {
    "overcommits": True,
    "max_model_len": 256,
    "kv_cache_memory_bytes": 256 * 16 * 24,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 48,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def play(engine: LocalEngine, seed: int, num_requests: int = 45) -> None:
    """Several tenants with prompts that begin alike, conversations that go on, cancels, deadlines, a forgotten cache."""
    rng = random.Random(seed)
    systems = [[rng.randrange(320) for _ in range(n)] for n in (16, 40, 70)]
    histories: list[list[int]] = []
    prompts: dict[str, list[int]] = {}
    for number in range(num_requests):
        base = rng.choice(histories) if histories and rng.random() < 0.4 else rng.choice(systems)
        ids = [*base, *(rng.randrange(320) for _ in range(rng.randrange(1, 50)))][:200]
        name = f"r{number}"
        prompts[name] = ids
        asked = request(
            name,
            ids,
            max_tokens=rng.randrange(1, 40),
            arrived=time.monotonic(),
            temperature=rng.choice((0.0, 1.0)),
            seed=number,
            stop_token_ids=tuple(rng.sample(range(320), 8)),
            prompt_logprobs=1 if rng.random() < 0.1 else None,
        )
        asked = replace(
            asked, tenant=rng.choice(("red", "green", "blue")), weight=rng.choice((1.0, 3.0))
        )
        if rng.random() < 0.1:
            asked = replace(asked, deadline=time.monotonic() + 0.01)
        engine.submit(asked)
        for _ in range(rng.randrange(0, 6)):
            if engine.engine.scheduler.has_work or engine.link.inbox:
                engine.step()
        if rng.random() < 0.2 and engine.engine.scheduler.by_id:
            engine.cancel(rng.choice(sorted(engine.engine.scheduler.by_id)))
        if number == num_requests // 2:
            engine.link.inbox.append(ResetPrefixCache())
        histories += [prompts[n] + engine.tokens.get(n, []) for n in engine.ends if n in prompts]
    engine.run()
    while engine.engine._flight is not None:  # of those who all ended meanwhile
        engine.step()
    engine.engine.steps.close()


def recorded(tiny: Path, folder: Path, seed: int, **options: object) -> tuple[LocalEngine, Run]:
    engine = LocalEngine(tiny, step_log=str(folder), **options)  # type: ignore[arg-type]
    play(engine, seed)
    [run] = read_runs(folder)
    return engine, run


def is_step(frame: object) -> bool:
    return isinstance(frame, Ran | Planned)


@pytest.mark.parametrize(
    ("policy", "seed", "ahead"),
    [
        ("fair", 1, False),
        ("fair", 2, False),
        ("fcfs", 3, False),
        ("priority", 4, False),
        ("fair", 1, True),
        ("fair", 2, True),
        ("fcfs", 3, True),
        ("priority", 4, True),
    ],
)
def test_a_replay_makes_the_recorded_plans(
    tiny: Path, tmp_path: Path, policy: str, seed: int, ahead: bool
) -> None:
    options = SMALL | {"scheduling_policy": policy, "async_scheduling": ahead}
    engine, run = recorded(tiny, tmp_path, seed, **options)
    # One ahead: plans come before the results of the step before them, and the record says so.
    kinds_of_frames = "".join("PS"[isinstance(f, Ran)] for f in run.frames if is_step(f))
    assert ("PP" in kinds_of_frames) == ahead == ("P" in kinds_of_frames)
    counters = engine.engine.scheduler.counters
    # How mixed it is depends on when cancels and deadlines come, one ahead more than else.
    is_mixed = counters.num_preemptions > 0 and counters.prefix_hits > 500
    assert is_mixed or (ahead and counters.prefix_hits > 100), "it was to be mixed"
    kinds = {getattr(end, "reason", "failed") for end in engine.ends.values()}
    assert kinds >= {"stop", "length", "abort"}
    replay = Replay(run)
    overcommit(replay.scheduler)
    difference = replay.follow()
    assert difference is None
    assert replay.num_steps == counters.num_steps > 100
    assert replay.scheduler.counters.num_preemptions == counters.num_preemptions
    assert replay.scheduler.counters.prefix_hits == counters.prefix_hits
    assert replay.scheduler.step_time.line == engine.engine.scheduler.step_time.line
    assert not replay.scheduler.has_work


def test_another_scheduler_makes_others_and_the_replay_says_where(
    tiny: Path, tmp_path: Path
) -> None:
    _, run = recorded(tiny, tmp_path, 5, **SMALL)
    machine = run.head.machine
    changed = replace(machine, limits=machine.limits | {"max_num_batched_tokens": 40})
    replay = Replay(run._replace(head=replace(run.head, machine=changed)))
    overcommit(replay.scheduler)
    difference = replay.follow()
    assert difference is not None and difference.recorded != difference.replayed
    shuffled = [
        replace(frame, digests=bytes(len(frame.digests))) if hasattr(frame, "digests") else frame
        for frame in run.frames
    ]
    replay = Replay(Run(run.head, True, shuffled))
    overcommit(replay.scheduler)
    assert replay.follow() is not None, "what blocks are called decides what is shared"


@pytest.mark.parametrize("ahead", [False, True])
def test_the_log_on_disk_is_what_was_kept_in_memory(
    tiny: Path, tmp_path: Path, ahead: bool
) -> None:
    engine, run = recorded(tiny, tmp_path, 6, **SMALL, async_scheduling=ahead)
    steps = read_steplog(tmp_path)
    assert steps == engine.engine.steps.tail(100_000)
    # Steps and the gaps between them are the time of the clock, also where they overlapped.
    assert all(step.gap_s >= 0 and step.elapsed_s > 0 for step in steps)
    spans = zip(steps, steps[1:], strict=False)
    assert all(abs(a.at + a.elapsed_s + b.gap_s - b.at) < 1e-5 for a, b in spans)
    assert all(each.id for step in steps for each in step.slices), "whoever ended meanwhile, too"
    assert all(all(step.started) and all(step.ended) for step in steps)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    num_steps = sum(isinstance(frame, Ran) for frame in run.frames)
    assert size / num_steps < 400, (
        "a few hundred bytes a step, requests and names of blocks included"
    )
    assert all((path.stat().st_mode & 0o077) == 0 for path in tmp_path.iterdir())
