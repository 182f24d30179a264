"""Two thousand hostile requests beside golden streams: no exit, no difference, no leak, no answer that should not be."""

from __future__ import annotations

import asyncio

from hostile.advisories import advisories
from hostile.attack import all_shots, attack
from hostile.server import Served
from hostile.shots import Shot

NUM_FUZZED, NUM_RAW = 900, 300
MOST_GROWTH_MIB = 64
"""Grammar and prefix caches fill up within their bounds meanwhile; a leak of 32 KiB a request would show."""


def test_the_corpus_covers_every_class_of_requests() -> None:
    names = {one.name.split()[0] for one in advisories()}
    assert names == {"S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "S12", "S15"}


def test_the_same_seed_makes_the_same_shots() -> None:
    first, second = all_shots(50, 60, 7), all_shots(50, 60, 7)
    assert first == second
    assert first != all_shots(50, 60, 8)
    assert sum(isinstance(one, Shot) for one in first) > 400


def test_hostile_requests_change_nothing_for_others() -> None:
    shots = all_shots(NUM_FUZZED, NUM_RAW, seed=1)
    assert len(shots) >= 2000
    with Served.start() as served:
        report = asyncio.run(attack(served, shots))
    assert report.requests == len(shots)
    assert report.wrong == [], report.table()
    assert report.differences == [], report.table()
    assert (report.exits, report.leaked_blocks) == (0, 0), report.table()
    assert report.grown_mib < MOST_GROWTH_MIB, report.table()
    assert report.golden_streams > 32, "the golden streams went round while the shots fell"
    assert report.statuses[200] > 100, "a good part of them ran"
