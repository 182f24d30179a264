"""Frames: whole whatever the cuts, and hostile bytes are refused."""

from __future__ import annotations

import pickle
import socket
import struct
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import EngineError
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import EngineStats, TokenLogprobs, TokenOut
from octavo.engine.ipc import (
    MAX_FRAME_BYTES,
    Abbreviation,
    Cancel,
    Events,
    FrameBuffer,
    Submit,
    Went,
    decode_from_engine,
    decode_to_engine,
    frame,
)
from octavo.engine.link import SocketLink

REQUEST = Request(
    id="a",
    token_ids=(1, 2, 3),
    params=SamplingParams(logit_bias={5: 1.0}),
    max_tokens=4,
    seed=-3,
    arrived=1.5,
)
MESSAGES = [Submit(REQUEST), Cancel(("a", "b")), Cancel(())]


@given(st.lists(st.integers(1, 9), max_size=200))
def test_frames_survive_any_cut(sizes: list[int]) -> None:
    data = b"".join(frame(message) for message in MESSAGES)
    buffer, seen, at = FrameBuffer(), [], 0
    for size in [*sizes, len(data)]:
        seen += [decode_to_engine(body) for body in buffer.feed(data[at : at + size])]
        at += size
    assert seen == MESSAGES


def test_events_come_back_as_they_were() -> None:
    message = Events((TokenOut(id="a", token_ids=(1,)),), EngineStats(num_running=1))
    [body] = FrameBuffer().feed(frame(message))
    assert decode_from_engine(body) == message


@pytest.mark.parametrize(
    "body", [b"", b"\x00", pickle.dumps(print), b"\x81\xa4type\xa4nope", frame(Cancel(("a",)))]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(EngineError):
        decode_to_engine(body)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(EngineError, match="at most"):
        FrameBuffer().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_a_slow_reader_does_not_stop_the_engine() -> None:
    ours, theirs = socket.socketpair()
    link = SocketLink(ours)
    message = Cancel(("x" * 1000,))
    for _ in range(5000):  # far more than the socket's buffer: send must not block
        link.send(message)  # type: ignore[arg-type]  # any frame will do
    buffer, count = FrameBuffer(), 0
    theirs.settimeout(10)
    while count < 5000:
        count += len(buffer.feed(theirs.recv(1 << 20)))
        link.receive(wait=False)
    theirs.sendall(frame(Submit(REQUEST)))
    assert link.receive(wait=True) == [Submit(REQUEST)]
    theirs.close()
    with pytest.raises(ConnectionError):
        link.receive(wait=True)
    link.close()
    ours.close()


def test_a_sleep_ends_when_it_is_woken_and_not_before() -> None:
    ours, theirs = socket.socketpair()
    link = SocketLink(ours)
    link.wake()  # before it sleeps
    assert link.receive(wait=True) == []
    with ThreadPoolExecutor(1) as threads:
        asleep = threads.submit(link.receive, wait=True)
        assert not wait([asleep], timeout=0.05).done
        for _ in range(10_000):  # more than are read: nobody who rings is held up
            link.wake()
        assert asleep.result(10) == []
    theirs.sendall(frame(Submit(REQUEST)))
    while not (got := link.receive(wait=True)):
        pass
    assert got == [Submit(REQUEST)]
    for end in (link, ours, theirs):
        end.close()


def test_the_prompt_logprobs_of_a_whole_long_context_fit_a_frame() -> None:
    one = TokenLogprobs(tuple(range(100_000, 100_021)), (-1.5,) * 21, 7)
    out = TokenOut(id="a", token_ids=(1,), prompt_logprobs=(one,) * 262_144)
    sent = frame(Events((out,), EngineStats()))
    [body] = FrameBuffer().feed(sent)
    assert len(body) > 64 << 20


def test_names_are_said_once_and_put_back() -> None:
    told, heard = Abbreviation(), Abbreviation()
    ids, stats = ("a", "b"), EngineStats(num_running=2)
    sent = [
        Went((1, 2), stats, ids, (0, 3)),
        Went((3, 4), stats, ids, (0, 3)),
        Events((), stats),
        Went((5, 6), stats, ids, (0, 3)),
        Went((7,), stats, ("b",)),
        Went((8,), stats, ("b",)),
    ]
    frames = [frame(told.shorten(message)) for message in sent]
    assert len(frames[1]) == len(frames[3]) < len(frames[0])
    got = [heard.complete(decode_from_engine(each[4:])) for each in frames]
    for one, other in zip(sent, got, strict=True):
        assert list(one.events) == list(other.events) and one.stats == other.stats
    assert got[1].events == [TokenOut("a", (3,)), TokenOut("b", (4,), num_preemptions=3)]
    assert got[4].events[0] == TokenOut("b", (7,)), "a new membership brings its own counts"


def test_tokens_of_nobody_are_refused() -> None:
    with pytest.raises(EngineError, match="2 tokens from the engine for 0 requests"):
        Abbreviation().complete(Went((1, 2), EngineStats()))
