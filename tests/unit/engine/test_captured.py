"""Captured steps: what is padded, captured and replayed is the eager step, bit for bit; and none is captured beyond the plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_device import FakeDevice, FakeGraph, Kept, Refillable
from local_engine import LocalEngine, request, write_tiny
from octavo.engine import buckets
from octavo.engine.captured import SLICE_S, CapturedSteps
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
    steps = capture_steps(local, device, num_bytes=250)
    local.run([request("a", [1, 2], max_tokens=2)])
    assert device.num_captures == 0  # one decode of one row
    local.run([request("b", [1, 2], max_tokens=5)])
    assert device.num_captures == 1
    local.run(request(f"c{i}", [1, 2], max_tokens=8) for i in range(2))
    assert device.num_captures == 2
    assert steps.refusal is None
    local.run(request(f"d{i}", [1, 2], max_tokens=8) for i in range(5))
    assert device.num_captures == 2
    assert steps.refusal is not None
    assert "200 bytes of 250, and another up to 100" in steps.refusal
    assert steps.num_bytes <= 250
    assert {end.__class__.__name__ for end in local.ends.values()} == {"Finished"}


class Taking(FakeDevice):
    """Captures take a tenth of a second, steps a hundredth."""

    now = 0.0

    def capture(self, compute: Callable[[], None]) -> FakeGraph:
        self.now += 0.1
        return super().capture(compute)


class Layers:
    """A clock by which every capture takes its time layer by layer: 3 ms for each time that it is asked during one."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.now = 0.0

    def __call__(self) -> float:
        if self.device.is_capturing:
            self.now += 0.003
        return self.now


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


def first(local: LocalEngine) -> Runner:
    runner = local.engine.runner
    assert isinstance(runner, Runner)
    return runner


def mixed(rng: random.Random, count: int) -> list:
    """Prompts in chunks of a few tokens beside outputs that go on."""
    return [
        request(
            f"r{i}",
            [rng.randrange(320) for _ in range(rng.randint(2, 60))],
            max_tokens=rng.randint(1, 12),
            seed=i,
            temperature=rng.choice((0.0, 0.8)),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 3, "num_key_value_heads": 1}])
def test_steps_in_pieces_are_the_eager_ones(tmp_path: Path, changes: dict, ahead: bool) -> None:
    folder = write_tiny(tmp_path, **changes)
    options = {"max_num_seqs": 6, "max_num_batched_tokens": 40, "enforce_eager": True}
    wanted = LocalEngine(folder, **options).run(mixed(random.Random(3), 30))
    local = LocalEngine(folder, async_scheduling=ahead, **options)
    steps = capture_steps(local, FakeDevice(), piece_tokens=40)
    assert local.run(mixed(random.Random(3), 30)) == wanted
    assert steps.refusal is None
    made = [step.program for step in steps._pieces.values() if step.program is not None]
    assert made
    num_layers = len(first(local).model.kv_specs())
    assert all(len(program.graphs) == num_layers + 1 for program in made)


def test_padding_of_pieces_writes_to_the_null_block_alone_and_finds_nothing(tmp_path: Path) -> None:
    """Whatever earlier steps left where outputs of attention lie, even no numbers, goes nowhere."""
    folder = write_tiny(tmp_path)
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 30, "enforce_eager": True}
    wanted = LocalEngine(folder, **options).run(mixed(random.Random(5), 20))
    local = LocalEngine(folder, **options)
    steps = capture_steps(local, FakeDevice(), piece_tokens=30)
    pool = first(local).pool
    local.submit(*mixed(random.Random(5), 20))
    while local.engine.scheduler.has_work or local.link.inbox:
        for _, outputs_THD in steps._bridges._pairs.values():
            with torch.inference_mode():
                outputs_THD.fill_(float("nan"))
        local.step()
        held = {b for s in local.engine.scheduler.running for b in s.blocks[0]}
        for i in range(2):
            assert not pool.layer(i).k.isnan().any()
            if not local.ends:  # nobody has given blocks back
                written = pool.layer(i).k.flatten(1).any(1).nonzero().flatten().tolist()
                assert set(written) <= held | {0}
    assert local.tokens == wanted
    assert any(step.program is not None for step in steps._pieces.values())


def test_captures_stop_for_now_after_some_milliseconds(tmp_path: Path) -> None:
    """No turn of the loop waits for more than a slice and a layer; the result is made of several graphs."""
    local = LocalEngine(write_tiny(tmp_path, num_hidden_layers=6), enforce_eager=True)
    device = FakeDevice()
    clock = Layers(device)
    steps = capture_steps(local, device, clock=clock)
    wanted = LocalEngine(
        write_tiny(tmp_path / "eager", num_hidden_layers=6), enforce_eager=True
    ).run([request("a", [3, 4], max_tokens=40)])
    local.submit(request("a", [3, 4], max_tokens=40))
    longest = 0.0
    while local.engine.scheduler.has_work or local.link.inbox:
        begun = clock.now
        local.step()
        longest = max(longest, clock.now - begun)
        clock.now += 0.1
    assert local.tokens == wanted
    program = steps._whole[1].program
    assert program is not None and len(program.graphs) >= 3
    assert longest <= SLICE_S + 2 * 0.003


def test_the_first_request_waits_for_no_capture_and_idle_time_makes_the_others(
    tmp_path: Path,
) -> None:
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=4, enforce_eager=True)
    device = FakeDevice()
    clock = Layers(device)
    steps = capture_steps(local, device, clock=clock)
    local.submit(request("a", [3, 4, 5], max_tokens=2))
    local.step()
    assert "a" in local.tokens and clock.now == 0.0 and device.num_captures == 0
    local.run()
    # With nothing to do all sizes are captured, smallest first, a slice at a time.
    runner = first(local)
    turns = 0
    while runner.rest():
        turns += 1
        assert turns < 100
    assert [size for size, step in steps._whole.items() if step.program] == [1, 2, 4]
    before = device.num_captures
    wanted = LocalEngine(write_tiny(tmp_path / "eager"), max_num_seqs=4, enforce_eager=True).run(
        [request("b", [7, 8], max_tokens=9)]
    )
    local.tokens.clear()
    assert local.run([request("b", [7, 8], max_tokens=9)]) == wanted
    assert device.num_captures == before


def test_plans_of_all_sizes_share_the_scratch_of_the_largest(tmp_path: Path) -> None:
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=8, enforce_eager=True)
    device = FakeDevice()
    steps = capture_steps(local, device, piece_tokens=32)
    runner = first(local)
    with torch.inference_mode():
        steps.prepare(runner)
    assert steps._whole[8].num_runs == 1 and steps._bridges._pairs
    local.run([request("a", [3, 4, 5], max_tokens=4)])
    backend = runner.model.blocks[0].attention.backend  # type: ignore[attr-defined]
    assert backend.num_beside == 1  # of the size one


def test_attention_that_fails_between_pieces_keeps_the_pieces(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 30, "enforce_eager": True}
    wanted = LocalEngine(folder, **options).run(mixed(random.Random(6), 12))
    local = LocalEngine(folder, **options)
    steps = capture_steps(local, FakeDevice(), piece_tokens=30)
    backend = first(local).model.blocks[1].attention.backend  # type: ignore[attr-defined]
    run, failed = backend.run, []

    def fails_once(q_THD: torch.Tensor, cache: Any, plan: Any) -> torch.Tensor:
        is_replay = any(step.program is not None for step in steps._pieces.values())
        if is_replay and not failed and not isinstance(plan, Kept):
            failed.append(True)
            raise RuntimeError("a launch that failed")
        return run(q_THD, cache, plan)

    backend.run = fails_once
    assert local.run(mixed(random.Random(6), 12)) == wanted
    assert failed and any(step.program is not None for step in steps._pieces.values())


@pytest.mark.parametrize(
    ("layers", "weight_bytes", "most", "tokens"),
    [(28, 880_000_000, 8192, 512), (28, 880_000_000, 100, 100), (32, 16_000_000_000, 8192, 0)],
)
def test_pieces_are_for_steps_that_the_host_launches_more_slowly_than_they_take(
    layers: int, weight_bytes: int, most: int, tokens: int
) -> None:
    assert buckets.piece_tokens(layers, weight_bytes, most) == tokens
    known = buckets.token_sizes(tokens)
    assert known == tuple(sorted(set(known)))
    for count in range(1, tokens + 1):
        size = buckets.bucket_of(count, known)
        assert count <= size <= max(count + 31, count * 3 // 2)
