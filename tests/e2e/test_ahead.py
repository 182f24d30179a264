"""Steps that are planned and launched before the one before them has results: nobody's output shows it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from fake_device import FakeDevice
from local_engine import LocalEngine, request, write_tiny
from octavo.core.request import Request
from octavo.core.result import Failed, Finished
from octavo.engine.runner import Runner

STEPS = 4000


def mix(seed: int, count: int) -> list[Request]:
    """Prompts of all lengths, greedy and not, with stops, penalties, log-probabilities and limits."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        ids = [rng.randrange(320) for _ in range(rng.choice((1, 7, 16, 40, 120)))]
        options: dict = {"max_tokens": rng.choice((1, 2, 17, 40)), "seed": i}
        options["temperature"] = rng.choice((0.0, 0.9))
        if rng.random() < 0.3:
            options["eos_token_ids"] = tuple(rng.sample(range(320), 40))
        if rng.random() < 0.1:
            options["stop_token_ids"] = tuple(rng.sample(range(320), 60))
            options["min_tokens"] = rng.choice((0, 1))
        if rng.random() < 0.1:
            options["frequency_penalty"] = 0.7
        if rng.random() < 0.1:
            options["logprobs"] = 2
        made.append(request(f"r{i}", ids, **options))
    return made


def outcome(local: LocalEngine) -> dict[str, object]:
    """All that callers were told, less the times."""
    told: dict[str, object] = {}
    for name, end in local.ends.items():
        tokens = local.tokens.get(name, [])
        logprobs = [one.logprobs for one in local.outs.get(name, [])]
        said = (end.reason, end.stop_token, end.num_output) if isinstance(end, Finished) else end
        told[name] = (tokens, logprobs, said)
    return told


def serve(local: LocalEngine, requests: list[Request], seed: int, *, cancels: bool) -> None:
    """They come by and by, and some are cancelled; the same ones at the same number of tokens."""
    rng = random.Random(seed)
    left = list(requests)
    for _ in range(STEPS):
        for _ in range(rng.choice((0, 0, 1, 3))):
            if left:
                local.submit(left.pop(0))
        if cancels and local.engine.scheduler.running and rng.random() < 0.05:
            local.cancel(rng.choice(local.engine.scheduler.running).id)
        if not left and not local.link.inbox and not local.engine.scheduler.has_work:
            return
        if local.link.inbox or local.engine.scheduler.has_work:
            local.step()
    raise AssertionError("not done")


def engine(folder: Path, **options: object) -> LocalEngine:
    return LocalEngine(folder, max_num_seqs=6, max_num_batched_tokens=48, **options)


def runs_ahead(local: LocalEngine) -> list[bool]:
    """Notes for each step that ended whether the next had been launched by then."""
    notes: list[bool] = []
    land = local.engine._land

    def noting(flight, runner, behind):  # type: ignore[no-untyped-def]
        notes.append(behind is not None)
        return land(flight, runner, behind)

    local.engine._land = noting  # type: ignore[method-assign]
    return notes


@pytest.mark.parametrize("options", [{}, {"overcommits": True, "kv_cache_memory_bytes": 90_000}])
@pytest.mark.parametrize("enforce_eager", [True, False])
def test_output_is_that_of_one_step_at_a_time(
    tmp_path: Path, options: dict, enforce_eager: bool
) -> None:
    folder = write_tiny(tmp_path)
    wanted = engine(folder, max_model_len=256, **options)
    serve(wanted, mix(7, 60), 7, cancels=False)
    local = engine(
        folder, max_model_len=256, async_scheduling=True, enforce_eager=enforce_eager, **options
    )
    notes = runs_ahead(local)
    serve(local, mix(7, 60), 7, cancels=False)
    assert outcome(local) == outcome(wanted)
    assert sum(notes) > len(notes) / 5
    if options:
        assert local.engine.scheduler.stats().num_preemptions > 0


def test_cancelled_requests_end_and_the_others_do_not_notice(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    wanted = engine(folder)
    serve(wanted, mix(3, 60), 3, cancels=False)
    local = engine(folder, async_scheduling=True)
    serve(local, mix(3, 60), 3, cancels=True)
    aborted = {
        name
        for name, end in local.ends.items()
        if isinstance(end, Finished) and end.reason == "abort"
    }
    assert aborted
    assert set(local.ends) == set(wanted.ends)
    for name, tokens in wanted.tokens.items():
        got = local.tokens.get(name, [])
        assert got == (tokens[: len(got)] if name in aborted else tokens)
        end = local.ends[name]
        assert isinstance(end, Finished)
        assert end.num_output == len(got)


def test_all_plain_steps_but_the_first_are_launched_ahead(tmp_path: Path) -> None:
    local = engine(write_tiny(tmp_path), async_scheduling=True)
    notes = runs_ahead(local)
    local.run(request(f"r{i}", [1, 2, i], max_tokens=20) for i in range(3))
    assert notes == [True] * 19 + [False]


def test_a_row_that_needs_its_token_is_waited_for(tmp_path: Path) -> None:
    local = engine(write_tiny(tmp_path), async_scheduling=True)
    notes = runs_ahead(local)
    local.run([request("p", [1, 2], max_tokens=9, presence_penalty=1.0)])
    assert not any(notes)


def test_who_comes_into_a_row_that_was_given_up_keeps_its_prompt(tmp_path: Path) -> None:
    """The step that is under way knows the row's last owner only."""
    folder = write_tiny(tmp_path)
    options: dict = {"max_tokens": 3, "prompt_logprobs": 1}
    wanted = LocalEngine(folder, max_num_seqs=1)
    wanted.run([request("new", [9, 8, 7, 6], **options)])
    local = LocalEngine(folder, max_num_seqs=1, async_scheduling=True)
    local.submit(request("old", [1, 2], max_tokens=30))
    while len(local.tokens.get("old", ())) < 5:
        local.step()
    assert local.engine._flight is not None
    local.cancel("old")
    local.run([request("new", [9, 8, 7, 6], **options)])
    told = [out.prompt_logprobs for out in local.outs["new"]]
    assert told == [out.prompt_logprobs for out in wanted.outs["new"]]
    assert told[0] is not None and len(told[0]) == 3


def break_device(local: LocalEngine) -> FakeDevice:
    runner = local.engine.runner
    assert isinstance(runner, Runner)
    runner._order = FakeDevice()
    return runner._order


def test_a_device_that_stumbles_fails_nobody(tmp_path: Path) -> None:
    """The step that threw runs again, and so does the one that was launched on top of it."""
    folder = write_tiny(tmp_path)
    wanted = engine(folder)
    serve(wanted, mix(11, 40), 11, cancels=False)
    local = engine(folder, async_scheduling=True)
    device = break_device(local)
    rng = random.Random(1)
    step = local.engine.step

    def stumbling() -> None:
        if rng.random() < 0.1:
            device.errors.append(RuntimeError("the device stumbled"))
        step()

    local.engine.step = stumbling  # type: ignore[method-assign]
    serve(local, mix(11, 40), 11, cancels=False)
    assert outcome(local) == outcome(wanted)


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    wanted = engine(folder).run(
        request(f"r{i}", [i + 1, 5, 9], max_tokens=12, temperature=0.0) for i in range(4)
    )
    local = engine(folder, async_scheduling=True, enforce_eager=True)
    runner = local.engine.runner
    assert isinstance(runner, Runner)
    logits = runner.model.logits
    calls = 0

    def poisoned(hidden_ND: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        out = logits(hidden_ND)
        if calls == 5:
            out = out.clone()
            out[2] = torch.nan
        return out

    runner.model.logits = poisoned  # type: ignore[method-assign]
    tokens = local.run(request(f"r{i}", [i + 1, 5, 9], max_tokens=12) for i in range(4))
    end = local.ends["r2"]
    assert isinstance(end, Failed)
    assert end.error.code == "non_finite_logits"
    assert tokens["r2"] == wanted["r2"][:4]
    for name in ("r0", "r1", "r3"):
        assert tokens[name] == wanted[name]
        assert isinstance(local.ends[name], Finished)
    assert [error for _, error in local.engine.scheduler.stats().faults] == [1]
