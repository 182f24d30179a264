"""A pool that hangs is seen, one that is busy is not taken for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from octavo.text.workers import TextWorkers


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def hang(workers: TextWorkers, release: threading.Event, *lengths: int) -> None:
    """Jobs of these lengths that do not end; returns when all have begun."""
    begun = threading.Barrier(len(lengths) + 1)

    def work() -> None:
        begun.wait(10)
        release.wait(60)

    for length in lengths:
        workers.submit(work, length)
    begun.wait(10)


def test_all_is_well_while_jobs_come_back() -> None:
    workers = TextWorkers(2)
    assert workers.submit(lambda: 7, 10).result(10) == 7
    workers.probe(lambda: 1)
    assert workers.stuck_s(time.monotonic()) == 0.0
    workers.close()


def test_a_deadlocked_pool_is_seen_within_two_seconds(release: threading.Event) -> None:
    workers = TextWorkers(3)
    hang(workers, release, 100, 100, 100)
    now = time.monotonic()
    assert workers.stuck_s(now + 0.5) == 0.0
    assert workers.stuck_s(now + 1.1) > 1.0
    assert workers.stuck_s(now + 30) > 29


def test_a_probe_that_hangs_is_seen_while_other_threads_are_idle(release: threading.Event) -> None:
    workers = TextWorkers(3)
    begun = threading.Event()

    def work() -> None:
        begun.set()
        release.wait(60)

    workers.probe(work)
    assert begun.wait(10)
    now = time.monotonic()
    assert workers.stuck_s(now + 0.5) == 0.0
    assert workers.stuck_s(now + 1.1) > 1.0
    workers.probe(lambda: pytest.fail("the last one is on its way"))


def test_long_texts_may_take_long(release: threading.Event) -> None:
    """A prompt of a million characters in every thread: the probe waits, and that is no hang for eleven seconds."""
    workers = TextWorkers(2)
    hang(workers, release, 1_000_000, 1_000_000)
    workers.probe(lambda: 1)
    now = time.monotonic()
    assert workers.stuck_s(now + 10.5) == 0.0
    assert workers.stuck_s(now + 11.5) > 11


def test_one_thread_that_works_is_enough(release: threading.Event) -> None:
    workers = TextWorkers(2)
    hang(workers, release, 10)
    assert workers.submit(lambda: 7, 10).result(10) == 7
    assert workers.stuck_s(time.monotonic() + 60) == 0.0


def test_a_job_that_fails_is_over() -> None:
    workers = TextWorkers(1)
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0, 10).result(10)
    assert workers.stuck_s(time.monotonic() + 60) == 0.0
    workers.close()
