"""The line fitted to measured steps: what it finds, what it ignores, what it follows."""

from __future__ import annotations

import random

import pytest

from octavo.core.steptime import StepTime, attended
from octavo.scheduler.steptime import StepTimeFit

TRUE = StepTime(base_s=0.025, token_s=0.001, context_s=2e-7)
SLOWER = StepTime(base_s=0.05, token_s=0.002, context_s=4e-7)


def feed(
    fit: StepTimeFit,
    steps: int,
    true: StepTime = TRUE,
    *,
    chunks: float = 0.3,
    noise: float = 0.05,
    pauses: float = 0.0,
    sizes: tuple[int, ...] = (128,),
    seed: int = 1,
) -> None:
    """Steps of a few decodes, some with a chunk of 128 tokens beside them."""
    rng = random.Random(seed)
    for _ in range(steps):
        tokens = rng.randint(4, 12)
        context = tokens * rng.randint(100, 3000)
        mixed = rng.random() < chunks
        if mixed:
            size = rng.choice(sizes)
            tokens, context = tokens + size, context + attended(rng.randrange(8000), size)
        elapsed = true.predict(tokens, context, is_mixed=mixed) * max(0.2, rng.gauss(1, noise))
        fit.observe(tokens, context, elapsed * (8 if rng.random() < pauses else 1), is_mixed=mixed)


def close(line: StepTime, true: StepTime, within: float) -> bool:
    cases = [(1, 100.0), (8, 8 * 2000.0), (136, 16000 + attended(0, 128))]
    cases.append((136, 16000 + attended(7000, 128)))
    return all(
        line.predict(*case, is_mixed=case[0] > 12)
        == pytest.approx(true.predict(*case, is_mixed=case[0] > 12), rel=within)
        for case in cases
    )


def test_it_finds_the_line_and_says_how_far_off_it_is() -> None:
    fit = StepTimeFit()
    feed(fit, 400)
    assert close(fit.line, TRUE, 0.05)
    assert fit.line.num_steps >= 400 - 32
    assert 0.03 < fit.line.error < 0.12, "80 % of errors of 5 % noise are below 6.4 %"


@pytest.mark.parametrize("chunk_s", [0.03, -0.02])
def test_steps_with_chunks_have_a_base_of_their_own(chunk_s: float) -> None:
    """Replayed decodes lack what a step costs that is not; or weights are read behind the arithmetic of a chunk."""
    true = StepTime(base_s=0.025, chunk_s=chunk_s, token_s=0.0002, context_s=2e-7)
    fit = StepTimeFit()
    feed(fit, 400, true, sizes=(32, 64, 128))
    assert close(fit.line, true, 0.06)
    assert fit.line.chunk_s == pytest.approx(chunk_s, abs=0.004)
    assert fit.line.error < 0.12


def test_before_the_first_chunk_its_base_is_that_of_decodes() -> None:
    fit = StepTimeFit()
    feed(fit, 100, chunks=0.0)
    assert fit.line.chunk_s == 0
    assert fit.line.base_s > 0


def test_a_kind_of_step_that_is_new_is_believed_at_once() -> None:
    """What was fitted to decodes with a slow chunk among them says that a chunk of 512 takes minutes."""
    fit = StepTimeFit()
    fit.observe(300, attended(0, 300), 2.0, is_mixed=True)
    feed(fit, 60, chunks=0.0)
    expected = TRUE.predict(512, attended(1024, 512))
    assert fit.line.predict(512, attended(1024, 512), is_mixed=True) > 3 * expected
    for start in (512, 1024, 1536, 0):
        seconds = TRUE.predict(512, attended(start, 512))
        fit.observe(512, attended(start, 512), seconds, is_mixed=True)
    said = fit.line.predict(512, attended(1024, 512), is_mixed=True)
    assert said == pytest.approx(expected, rel=0.2)


def test_a_slow_first_step_and_pauses_of_the_machine_move_little() -> None:
    fit = StepTimeFit()
    fit.observe(136, attended(0, 128), 3.0)
    feed(fit, 400, pauses=0.03)
    assert close(fit.line, TRUE, 0.08)


def test_a_night_of_decodes_does_not_wash_out_what_a_chunk_costs() -> None:
    fit = StepTimeFit()
    feed(fit, 200)
    feed(fit, 5000, chunks=0.0, seed=2)
    assert close(fit.line, TRUE, 0.08)


def test_a_machine_that_stays_slower_is_followed_for_kinds_not_seen_since_too() -> None:
    fit = StepTimeFit()
    feed(fit, 200)
    feed(fit, 300, SLOWER, chunks=0.0, seed=3)
    assert close(fit.line, SLOWER, 0.25)
    feed(fit, 100, SLOWER, seed=4)
    assert close(fit.line, SLOWER, 0.15)


@pytest.mark.parametrize("true", [StepTime(base_s=0.01), StepTime(token_s=0.001), TRUE])
def test_no_coefficient_is_negative(true: StepTime) -> None:
    for seed in range(20):
        fit = StepTimeFit()
        feed(fit, 60, true, noise=0.3, seed=seed)
        line = fit.line
        assert min(line.base_s, line.token_s, line.context_s) >= 0
        assert line.predict(1, 1) > 0


def test_steps_of_one_size_are_the_base_s() -> None:
    fit = StepTimeFit()
    for _ in range(50):
        fit.observe(1, 100, 0.01)
    assert fit.line.predict(1, 100) == pytest.approx(0.01, rel=0.01)
    assert fit.line.base_s > 0.009


def test_what_was_not_measured_says_nothing() -> None:
    fit = StepTimeFit()
    fit.observe(0, 0, 1.0)
    fit.observe(5, 5, 0.0)
    assert fit.line == StepTime()
    assert not fit.is_fitted
