"""The short form of `make soak`: kills, replacements, bursts, hostile requests and clients that leave, all at once."""

from __future__ import annotations

import asyncio

from hostile.soak import Plan, soak


def test_everything_at_once_hurts_nobody() -> None:
    plan = Plan(seconds=25, kill_every=6, replace_every=12, burst_every=8, num_golden=16)
    found = asyncio.run(soak(plan))
    shown = "\n".join((str(found.figures()), *found.golden_failures[:3], *found.wrong_answers[:3]))
    assert found.is_clean, shown
    assert found.golden_streams > 16 and found.hostile_requests > 100, shown
    assert found.kills > 0 and found.overload_requests > 0 and found.disconnects > 0, shown
