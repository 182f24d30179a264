"""What is decided where nobody said, and the reason that is told."""

from __future__ import annotations

import pytest

from octavo.core import resolve


@pytest.mark.parametrize(
    ("asked", "device", "forbidden", "is_on", "says"),
    [
        (None, "cpu", None, False, "the host is the device"),
        (None, "cuda", None, True, "default on cuda"),
        (True, "cpu", None, True, "as given"),
        (False, "cuda", None, False, "as given"),
        (None, "cuda", "prompts are pooled", False, "pooled"),
        (True, "cuda", "--inject", False, "--inject"),
        (False, "cuda", "--inject", False, "as given"),
    ],
)
def test_steps_are_one_ahead_on_a_gpu_unless_something_forbids_it(
    asked: bool | None, device: str, forbidden: str | None, is_on: bool, says: str
) -> None:
    value, decision = resolve.steps_ahead(asked, device, forbidden)
    assert (value, decision.value) == (is_on, "on" if is_on else "off")
    assert says in decision.reason
