"""Open requests over the ends of engines: what is told again, what is not, and who is suspected of what."""

from __future__ import annotations

import time

from octavo.core.errors import ErrorInfo
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished, RequestTiming, TokenOut
from octavo.engine.streams import Stream, Streams


def request(name: str, **fields: object) -> Request:
    base = {"token_ids": (1, 2), "params": SamplingParams(), "max_tokens": 9, "seed": 4}
    return Request(id=name, arrived=10.0, **(base | fields))  # type: ignore[arg-type]


def finished(name: str, **timing: float | None) -> Finished:
    times = {"arrived": 10.0, "admitted": 90.0, "first_token": 91.0, "last_token": 92.0} | timing
    return Finished(
        id=name,
        reason="length",
        stop_token=None,
        num_prompt=2,
        num_output=9,
        num_cached=48,
        num_preemptions=0,
        timing=RequestTiming(**times),  # type: ignore[arg-type]
    )


def told(stream: Stream) -> list[Event]:
    return [stream.queue.get_nowait() for _ in range(stream.queue.qsize())]


def sent(streams: Streams) -> list[str]:
    return [one.id for one in streams.due()]


def token(name: str, *ids: int, num_cached: int = 0) -> TokenOut:
    return TokenOut(id=name, token_ids=ids, num_cached=num_cached)


def test_the_next_engine_is_asked_for_the_rest_alone() -> None:
    streams = Streams()
    stream = streams.open(request("a"), is_late=False)
    assert streams.due() == [request("a")], "sent as it came"
    streams.start(["a"], 11.0)
    assert streams.take([token("a", 5, num_cached=16), token("a", 6, 7)], 12.0)
    assert (streams.lose().num_running, streams.has_held) == (1, True)
    assert streams.due() == [request("a", resumed=(5, 6, 7), restarts=1)]
    streams.start(["a"], 80.0)
    streams.take([token("a", 8, num_cached=32), finished("a")], 92.0)
    first, second, third, end = told(stream)
    assert [first, second] == [token("a", 5, num_cached=16), token("a", 6, 7)]
    assert third == token("a", 8), "how much was cached is said once"
    assert isinstance(end, Finished) and end.num_cached == 16 and end.num_output == 9
    assert end.timing == RequestTiming(
        arrived=10.0, admitted=11.0, first_token=12.0, last_token=92.0
    )
    assert len(streams) == 0


def test_an_end_without_new_tokens_has_the_times_of_the_old_ones() -> None:
    streams = Streams()
    stream = streams.open(request("a"), is_late=False)
    streams.due()
    streams.start(["a"], 11.0)
    streams.take([token("a", 5)], 12.0)
    streams.lose()
    streams.due()
    streams.take([finished("a", admitted=None, first_token=None, last_token=None)], 99.0)
    end = told(stream)[-1]
    assert isinstance(end, Finished)
    assert end.timing == RequestTiming(
        arrived=10.0, admitted=11.0, first_token=12.0, last_token=12.0
    )


def test_what_said_nothing_yet_is_told_what_the_next_engine_found() -> None:
    streams = Streams()
    stream = streams.open(request("a"), is_late=False)
    streams.due()
    streams.lose()
    streams.due()
    streams.take([token("a", 5, num_cached=16), finished("a")], 92.0)
    first, end = told(stream)
    assert isinstance(first, TokenOut) and first.num_cached == 16
    assert isinstance(end, Finished) and end.num_cached == 16 and end.timing.admitted == 90.0


def test_order_is_kept_and_those_who_left_are_forgotten() -> None:
    streams = Streams()
    for name in "abc":
        streams.open(request(name), is_late=False)
    assert sent(streams) == ["a", "b", "c"] and sent(streams) == []
    streams.lose()
    assert not streams.close("b"), "no engine has it"
    streams.open(request("d"), is_late=True)
    again = streams.due()
    assert [(one.id, one.restarts) for one in again] == [("a", 1), ("c", 1), ("d", 1)]
    assert streams.close("a") and not streams.close("a") and not streams.close("nobody")
    assert not streams.take([token("a", 1)], 1.0), "nobody is there to be answered"


def deaths(streams: Streams, count: int) -> list[tuple[list[str], tuple[str, ...]]]:
    """Per engine: whom it got and ran; and who failed at its end."""
    seen = []
    for _ in range(count):
        got = sent(streams)
        streams.start(got, 1.0)
        seen.append((got, tuple(each.id for each in streams.lose().failed)))
    return seen


def test_a_request_that_engines_end_from_fails_alone() -> None:
    streams = Streams()
    poison, other = (streams.open(request(name), is_late=False) for name in ("poison", "other"))
    streams.open(request("late"), is_late=False)
    both = ["poison", "other", "late"]
    assert deaths(streams, 3) == [(both, ()), (both, ()), (["poison"], ("poison",))]
    [end] = told(poison)
    assert isinstance(end, Failed) and (end.error.code, end.error.status) == ("request_fault", 500)
    assert "3 engine processes" in end.error.message
    # The others were in its company twice, so they come one by one until they are heard of.
    assert sent(streams) == ["other"] and sent(streams) == []
    streams.start(["other"], 1.0)
    streams.take([token("other", 5)], 1.0)
    assert sent(streams) == ["late"]
    assert told(other) == [token("other", 5)]


def test_what_is_heard_of_is_no_suspect_and_what_only_waits_is_none() -> None:
    streams = Streams()
    for name in ("speaks", "waits"):
        streams.open(request(name), is_late=False)
    for _ in range(6):
        assert sent(streams) == ["speaks", "waits"]
        streams.start(["speaks"], 1.0)
        streams.take([token("speaks", 5)], time.monotonic())
        assert streams.lose() == (1, 1, ())


def test_ends_from_outside_are_no_evidence() -> None:
    streams = Streams()
    for name in ("a", "b"):
        streams.open(request(name, grammar="g"), is_late=False)
    for _ in range(20):
        assert sent(streams) == ["a", "b"]
        streams.start(["a"], 1.0)
        assert streams.lose(is_no_evidence=True) == (1, 1, ())


def test_a_suspect_that_leaves_lets_the_others_go_on() -> None:
    streams = Streams()
    streams.open(request("a"), is_late=False)
    streams.open(request("b"), is_late=False)
    deaths(streams, 2)
    assert sent(streams) == ["a"]
    assert streams.close("a")
    assert sent(streams) == ["b"]


def test_what_builds_a_grammar_may_be_what_the_engine_ends_from() -> None:
    streams = Streams()
    streams.open(request("g", grammar="x"), is_late=False)
    streams.open(request("w"), is_late=False)
    for _ in range(2):
        assert sent(streams) == ["g", "w"]
        streams.lose()
    assert sent(streams) == ["g"]
    assert [each.id for each in streams.lose().failed] == ["g"]
    assert sent(streams) == ["w"]


def test_what_is_worth_nothing_is_not_sent() -> None:
    streams = Streams()
    early = streams.open(request("early", deadline=30.0), is_late=True)
    streams.open(request("free"), is_late=True)
    assert streams.deadlines == [(30.0, "early")]
    streams.expire("early", 31.5)
    streams.expire("unknown", 31.5)
    assert sent(streams) == ["free"] and len(streams) == 1
    [end] = told(early)
    assert isinstance(end, Failed) and end.error.status == 504
    assert "1.500 s ago" in end.error.message and "0 of at most 9" in end.error.message
    running = streams.open(request("sent", deadline=30.0), is_late=False)
    assert sent(streams) == ["sent"] and streams.deadlines == []
    streams.expire("sent", 31.5)
    assert told(running) == [] and len(streams) == 2, "its engine ends it"


def test_without_another_engine_everything_open_fails() -> None:
    streams = Streams()
    stream = streams.open(request("a"), is_late=False)
    error = ErrorInfo(code="engine_unavailable", message="gone.", status=503)
    streams.fail(error)
    assert told(stream) == [Failed(id="a", error=error)] and len(streams) == 0


def test_when_it_first_ran_is_said_once_and_as_it_was() -> None:
    streams = Streams()
    stream = streams.open(request("a"), is_late=False)
    streams.due()
    streams.start(["a"], 11.0)
    assert streams.stage("a") == "running" and streams.stage("b") == "elsewhere"
    streams.lose()
    assert streams.stage("a") == "waiting"
    streams.due()
    streams.start(["a"], 50.0)
    streams.take([TokenOut(id="a", token_ids=(5,), admitted=50.0)], 51.0)
    streams.lose()
    streams.due()
    streams.start(["a"], 80.0)
    streams.take([TokenOut(id="a", token_ids=(6,), admitted=80.0, num_cached=16)], 81.0)
    assert told(stream) == [TokenOut(id="a", token_ids=(5,), admitted=11.0), token("a", 6)]
