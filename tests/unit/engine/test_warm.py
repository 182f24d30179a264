"""What a GPU's engine does before it is ready, on a device that counts: plan, bound, warm-up, and what is said of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from fake_device import FakeDevice
from local_engine import LocalEngine, request, write_tiny
from octavo.core.errors import ConfigError
from octavo.engine.runner import Runner
from octavo.engine.warm import MIXED_TOKENS, exceeded, settle, warm_up


class NoMemoryError(RuntimeError):
    """As torch's."""


class Bounded(FakeDevice):
    """Refuses what the test tells it to."""

    bound = 0

    def settle(self, most_bytes: int) -> None:
        self.bound = most_bytes

    def is_exceeded(self, error: BaseException) -> bool:
        return isinstance(error, NoMemoryError)


def engine(tmp_path: Path) -> tuple[LocalEngine, Runner, Bounded]:
    local = LocalEngine(write_tiny(tmp_path), max_num_seqs=4, enforce_eager=True)
    runner, device = local.engine.runner, Bounded()
    assert isinstance(runner, Runner)
    runner._order = device
    return local, runner, device


def plan_of(local: LocalEngine) -> Any:
    from octavo.engine import boot

    config = local.ready
    assert config is not None
    return boot.decide(
        boot.EngineConfig(model=local.ready.model, kv_cache_memory_bytes=1 << 20)
    ).memory


def test_the_largest_step_runs_before_the_first_request_and_leaves_nothing(tmp_path: Path) -> None:
    local, runner, device = engine(tmp_path)
    memory = plan_of(local)
    settle(device, memory)
    assert device.bound == memory.budget
    seen: list[list[int]] = []
    forward = runner.model.forward

    def watched(batch: Any, kv: Any) -> Any:
        starts = batch.query_starts
        seen.append([after - before for before, after in itertools.pairwise(starts)])
        return forward(batch, kv)

    runner.model.forward = watched  # type: ignore[method-assign]
    assert warm_up(runner, local.engine.scheduler.limits, memory, device) == 0
    limits = local.engine.scheduler.limits
    most = min(limits.max_num_batched_tokens, limits.max_num_seqs * limits.max_model_len)
    assert sum(seen[0]) == most > 64 and seen[-1] == [1]
    # A chunk beside a single token, in as many rows as products have variants for.
    mixed = [[min(tokens - 1, limits.max_model_len), 1] for tokens in MIXED_TOKENS if tokens < most]
    assert seen[1:-1] == mixed and len(mixed) >= 3
    assert all(not runner.pool.layer(i).k.any() for i in range(2))
    assert device.num_waits >= 1


def test_a_plan_that_does_not_hold_ends_the_start_with_its_cause(tmp_path: Path) -> None:
    local, runner, device = engine(tmp_path)
    memory = plan_of(local)

    def no_memory(batch: Any, kv: Any) -> Any:
        raise NoMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    runner.model.forward = no_memory  # type: ignore[method-assign]
    with pytest.raises(ConfigError) as caught:
        warm_up(runner, local.engine.scheduler.limits, memory, device)
    assert caught.value.code == "E-GPU-08" == exceeded(memory, RuntimeError("x")).code
    assert "Tried to allocate 2.00 GiB)" in caught.value.message
    assert "--max-num-batched-tokens" in caught.value.fix


def test_a_step_beyond_the_plan_is_named_and_its_halves_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An allocation that fails after ready fails nobody where half of the step fits."""
    local, runner, _ = engine(tmp_path)
    forward = runner.model.forward

    def small(batch: Any, kv: Any) -> Any:
        if batch.num_slices > 1:
            raise NoMemoryError("CUDA out of memory")
        return forward(batch, kv)

    runner.model.forward = small  # type: ignore[method-assign]
    local.run(request(f"r{i}", [1 + i, 2, 3], max_tokens=4) for i in range(2))
    assert {end.__class__.__name__ for end in local.ends.values()} == {"Finished"}
    assert "E-GPU-09: a step of 2 slices" in caplog.text
