"""Captured steps: what is padded, captured and replayed is the eager step, bit for bit; and none is captured beyond the plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_device import FakeDevice, FakeGraph, Refillable
from local_engine import LocalEngine, request, write_tiny
from octavo.engine import buckets
from octavo.engine.captured import CapturedSteps
from octavo.engine.kept import Room
from octavo.engine.runner import Runner


def capture_steps(
    local: LocalEngine,
    device: FakeDevice,
    num_bytes: int = 1 << 40,
    clock: Callable[[], float] = lambda: 0.0,
    piece_tokens: int = 0,
) -> CapturedSteps:
    """Have the engine replay padded steps. By the clock of this default captures take no time."""
    runner = local.engine.runner
    assert isinstance(runner, Runner)
    for block in runner.model.blocks:  # type: ignore[attr-defined]
        block.attention.backend = Refillable(block.attention.backend)
    layers = [runner.pool.layer(i) for i in range(len(runner.model.kv_specs()))]
    device.untouched = [tensor for layer in layers for tensor in layer.tensors()]
    limits = local.engine.scheduler.limits
    room = Room(
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        num_blocks=tuple(group.num_blocks for group in runner.pool.groups),
        num_bytes=num_bytes,
        piece_tokens=piece_tokens,
    )
    steps = CapturedSteps(device, room, clock=clock)
    runner.graphs = steps
    return steps


def requests(rng: random.Random, count: int) -> Iterator:
    for i in range(count):
        ids = [rng.randrange(320) for _ in range(rng.randint(1, 90))]
        yield request(
            f"r{i}",
            ids,
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice((0.0, 0.8)),
            seed=i,
        )


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}])
def test_replayed_steps_are_the_eager_ones(tmp_path: Path, changes: dict, ahead: bool) -> None:
    folder = write_tiny(tmp_path, **changes)
    wanted = LocalEngine(folder, max_num_seqs=12, enforce_eager=True).run(
        requests(random.Random(1), 40)
    )
    local = LocalEngine(folder, max_num_seqs=12, enforce_eager=True, async_scheduling=ahead)
    device = FakeDevice()
    steps = capture_steps(local, device)
    assert local.run(requests(random.Random(1), 40)) == wanted
    assert steps.refusal is None
    assert 3 <= device.num_captures <= len(buckets.sizes(12))
    # Nobody's rows have written where anyone reads.
    assert steps.num_bytes == device.num_captures


def test_a_padded_row_writes_to_the_null_block_alone(tmp_path: Path) -> None:
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=12, enforce_eager=True)
    steps = capture_steps(local, FakeDevice())
    pool = local.engine.runner.pool  # type: ignore[attr-defined]
    local.submit(*(request(f"r{i}", [5 + i] * 20, max_tokens=30) for i in range(9)))
    while len(local.tokens.get("r8", ())) < 6:
        local.step()
    held = {block for s in local.engine.scheduler.running for block in s.blocks[0]}
    before = [pool.layer(i).k.clone() for i in range(2)]
    local.step()
    assert steps._whole[12].program is not None  # nine rows, padded to twelve
    for i in range(2):
        changed = (pool.layer(i).k != before[i]).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(changed) <= held | {0}
        assert set(changed) & held


def test_the_first_step_of_a_size_is_eager_and_captures_end_with_their_memory(
    tmp_path: Path,
) -> None:
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=12, enforce_eager=True)
    device = FakeDevice(graph_bytes=100)
    steps = capture_steps(local, device, num_bytes=150)
    local.run([request("a", [1, 2], max_tokens=2)])
    assert device.num_captures == 0  # one decode of one row
    local.run([request("b", [1, 2], max_tokens=5)])
    assert device.num_captures == 1
    local.run(request(f"c{i}", [1, 2], max_tokens=8) for i in range(2))
    assert device.num_captures == 2
    assert steps.refusal is not None
    assert "200 bytes of 150" in steps.refusal
    local.run(request(f"d{i}", [1, 2], max_tokens=8) for i in range(5))
    assert device.num_captures == 2
    assert {end.__class__.__name__ for end in local.ends.values()} == {"Finished"}


class Taking(FakeDevice):
    """Captures take a tenth of a second, steps a hundredth."""

    now = 0.0

    def capture(self, compute: Callable[[], None]) -> FakeGraph:
        self.now += 0.1
        return super().capture(compute)


def test_captures_come_one_at_a_time_and_far_apart(tmp_path: Path) -> None:
    """However many sizes come up at once, no step waits for more than one, and few steps wait."""
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=12, enforce_eager=True)
    device = Taking()
    steps = capture_steps(local, device, clock=lambda: device.now)
    # Twelve that end one after the other: every size comes up, several times each.
    local.submit(*(request(f"r{i}", [1, 2, i], max_tokens=40 + 40 * i) for i in range(12)))
    made: list[float] = []
    while local.engine.scheduler.has_work or local.link.inbox:
        device.now += 0.01
        before = device.num_captures
        local.step()
        assert device.num_captures <= before + 1
        made += [device.now] * (device.num_captures - before)
    assert len(made) >= 3
    gaps = [after - before for before, after in zip(made, made[1:], strict=False)]
    assert min(gaps) > 20 * 0.1
    assert all(step.program is None or step.num_runs >= 2 for step in steps._whole.values())


def test_a_capture_that_fails_leaves_steps_eager(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    wanted = LocalEngine(folder, enforce_eager=True).run(requests(random.Random(2), 8))
    local = LocalEngine(folder, enforce_eager=True)
    steps = capture_steps(local, FakeDevice(capture_error="not permitted when capturing"))
    assert local.run(requests(random.Random(2), 8)) == wanted
    assert steps.refusal is not None
    assert "not permitted" in steps.refusal


def test_a_replay_that_fails_fails_nobody(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    wanted = LocalEngine(folder, enforce_eager=True).run([request("a", [3, 4], max_tokens=12)])
    local = LocalEngine(folder, enforce_eager=True)
    steps = capture_steps(local, FakeDevice())
    local.submit(request("a", [3, 4], max_tokens=12))
    while 1 not in steps._whole or steps._whole[1].program is None:
        local.step()

    def broken() -> None:
        raise RuntimeError("a graph that cannot be launched")

    steps._whole[1].program.graphs[0].replay = broken  # type: ignore[union-attr,method-assign]
    assert local.run() == wanted


@pytest.mark.parametrize("most", [1, 3, 8, 100, 4096])
def test_every_count_has_a_bucket_that_wastes_little(most: int) -> None:
    known = buckets.sizes(most)
    assert known == tuple(sorted(set(known)))
    assert known[-1] == most
    for count in range(1, most + 1):
        size = buckets.bucket_of(count, known)
        assert count <= size <= most
        assert size - count < max(8, count / 4)
