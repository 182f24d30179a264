"""Parts of a request's time over steps that are written by hand."""

from __future__ import annotations

import pytest

from octavo.core.steptime import StepTime
from octavo.meter.steplog import SliceRecord, StepRecord
from octavo.meter.why import PARTS, Seen, Stamps, Why, explain, reason_of, total_of

LINE = StepTime(base_s=0.1, token_s=0.1, num_steps=99)


def slice_of(name: str, start: int, count: int = 1) -> SliceRecord:
    return SliceRecord(id=name, start=start, num_tokens=count, num_sampled=1)


def step(
    number: int, at: float, elapsed_s: float, *slices: SliceRecord, **fields: object
) -> StepRecord:
    return StepRecord(
        step=number, at=at, elapsed_s=elapsed_s, gap_s=0.0,
        num_tokens=sum(s.num_tokens for s in slices), slices=slices, **fields,  # type: ignore[arg-type]  # as named
    )  # fmt: skip


def stamps(last: float, ended: float, **fields: object) -> Stamps:
    values = {
        "received": 0.0, "authorized": 0.1, "body": 0.3, "prepared": 0.6, "sent": 1.0,
        "last_token": last, "ended": ended, "num_prompt": 8,
    }  # fmt: skip
    return Stamps(**(values | fields))  # type: ignore[arg-type]  # as named


def seconds(why: Why) -> dict[str, float]:
    found = {
        f"{p.name}:{p.reason}" if p.reason else p.name: pytest.approx(p.seconds) for p in why.parts
    }
    assert total_of(why.parts) == pytest.approx(why.total_s)
    return found


def test_every_second_has_its_part() -> None:
    row = (("no_row", 1),)
    room = (("no_row", 1), ("behind", 3))
    records = [
        step(1, 0.5, 1.0, slice_of("x", 0, 9), started=("x",)),  # under way until 1.5
        step(2, 1.6, 1.0, slice_of("x", 9), waiting=row, heads=(("me", "no_row"),)),
        step(3, 2.7, 0.3, slice_of("x", 10), waiting=room, heads=(("z", "no_row"),)),
        # base 0.1 and own 0.8 of 1.8; a prompt of 8 beside it 0.8, a decode 0.1
        step(4, 3.2, 1.8, slice_of("x", 11), slice_of("y", 0, 8), slice_of("me", 0, 8), started=("y", "me")),
        step(5, 5.0, 0.3, slice_of("x", 12), slice_of("me", 8)),
        step(6, 5.3, 0.4, slice_of("x", 13)),
        step(7, 5.7, 0.5, slice_of("x", 14), ended=("me",), waiting=row),
        step(8, 6.2, 1.0, slice_of("me", 0, 9), started=("me",)),
        step(9, 7.2, 0.2, slice_of("me", 9)),
    ]  # fmt: skip
    why = explain(
        "me",
        stamps(7.5, 9.0, stalls=((8.0, 8.5),), texts=((7.9, 8.1),)),
        [Seen(1.1, records, LINE)],
    )
    assert seconds(why) == {
        "auth": 0.1,
        "network": 0.2,
        "tokenize": 0.3,
        "grammar": 0.4,
        "step_under_way": 0.5,
        "queue:no_row": 1.1,
        "queue:behind": 0.4,
        "own_prefill": 0.9,
        "others_prefill": 0.8,
        "decode": 0.2 + 0.2,
        "batch": 0.1 + 0.1 + 0.4,
        "preemption": 0.5 + 1.0,
        "loop": 0.2 + 0.1,
        "client_stall": 0.5,
        "detokenize": 0.1,
        "delivery": 0.9,
    }
    assert [cost.id for cost in why.costliest] == ["x", "y"] and why.num_steps == 9
    assert why.costliest[1].seconds == pytest.approx(0.8)
    assert [part.name for part in why.parts] == sorted(
        (part.name for part in why.parts), key=list(PARTS).index
    )


def test_an_engine_that_ended_meanwhile() -> None:
    before = [step(1, 1.0, 1.0, slice_of("me", 0, 8), started=("me",))]
    after = [step(1, 5.0, 1.0, slice_of("me", 0, 9), started=("me",))]
    why = explain("me", stamps(6.0, 6.0), [Seen(1.0, before, LINE), Seen(4.5, after, LINE)])
    found = seconds(why)
    assert (found["restart"], found["own_prefill"], found["preemption"]) == (3.0, 1.0, 1.0)


def test_without_steps_the_request_says_what_it_knows() -> None:
    known = stamps(4.0, 4.5, admitted=1.5, first_token=2.5)
    found = seconds(explain("me", known))
    assert (found["queue"], found["own_prefill"], found["decode"]) == (0.5, 1.0, 1.5)
    assert found["delivery"] == 0.5
    found = seconds(explain("me", stamps(4.0, 4.5)))
    assert found["engine"] == 3.0 and "queue" not in found
    assert explain("me", known).costliest == ()


def test_before_anything_is_priced_tokens_count() -> None:
    records = [step(1, 1.0, 1.0, slice_of("x", 0, 24), slice_of("me", 0, 8), started=("x", "me"))]
    found = seconds(explain("me", stamps(2.0, 2.0), [Seen(0.9, records, StepTime())]))
    assert (found["own_prefill"], found["others_prefill"]) == (0.25, 0.75)


def test_whoever_had_the_row_cost_it_also_where_the_fit_leaves_nothing_to_them() -> None:
    """Steps that were all alike are a base and no more."""
    alike = StepTime(base_s=1.0, num_steps=99)
    records = [
        step(1, 1.0, 1.0, slice_of("x", 8), waiting=(("no_row", 1),)),
        step(2, 2.0, 1.0, slice_of("x", 9), slice_of("me", 0, 8), started=("me",)),
    ]
    why = explain("me", stamps(3.0, 3.0), [Seen(0.9, records, alike)])
    assert [(cost.id, cost.seconds) for cost in why.costliest] == [("x", 1.0)]


def test_reasons_are_the_head_s_own_or_that_of_all_others() -> None:
    record = step(1, 0.0, 1.0, heads=(("a", "no_room"),), waiting=(("no_room", 1), ("behind", 4)))
    assert (reason_of(record, "a"), reason_of(record, "b")) == ("no_room", "behind")
    assert reason_of(step(1, 0.0, 1.0), "a") == "behind"
