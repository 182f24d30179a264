"""The supervisor over processes that are tasks: every way to end, and what open requests see of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from octavo.core.config import EngineConfig
from octavo.core.errors import EngineDeadError, ErrorInfo, OperatorError, OverloadError
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event, Failed, Finished, RequestTiming, TokenOut
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine import life, supervise
from octavo.engine.client import EngineClient
from octavo.engine.following import CREDIT
from octavo.engine.ipc import (
    Cancel,
    Events,
    Fatal,
    FollowSteps,
    FrameBuffer,
    FromEngine,
    Loading,
    Phase,
    Ready,
    Shutdown,
    Started,
    StartEngine,
    Steps,
    Submit,
    ToEngine,
    UseVocabulary,
    decode_to_engine,
    frame,
    read_frame,
)
from octavo.engine.page import Page
from octavo.engine.streams import Streams
from octavo.meter.steplog import StepRecord

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(supervise, "_SHUTDOWN_S", 0.05)
    monkeypatch.setattr(life, "_END_S", 0.05)
    monkeypatch.setattr(life, "_KILL_S", 0.05)


READY = Ready(
    model="m",
    max_model_len=512,
    vocab_size=100,
    device="fake",
    dtype="float32",
    max_num_seqs=8,
    max_num_batched_tokens=256,
    num_blocks=10,
    block_size=16,
    kv_tokens=160,
    memory=(("weights", 5), ("kv cache", 640)),
    decisions=(),
    phases=(Phase(name="all", seconds=0.0),),
    pid=1,
)
FATAL = ErrorInfo(code="E-ENGINE-01", message="the engine stopped: a test.", status=500)


def token_at(request: Request, position: int) -> int:
    return (request.seed * 31 + sum(request.token_ids) + position * 7) % 97


@dataclass
class Script:
    """What the processes do, one after the other; the last goes on for ever."""

    plans: list[dict]
    processes: list[FakeProcess] = field(default_factory=list)

    def launch(self) -> FakeProcess:
        plan = self.plans[min(len(self.processes), len(self.plans) - 1)]
        if plan.get("cannot_launch"):
            self.plans.pop(0)
            raise OSError("no room for a process")
        self.processes.append(FakeProcess(plan))
        return self.processes[-1]


class FakeProcess:
    """An engine of one thread of events: a step gives each request its next token."""

    _pids = itertools.count(1000)

    def __init__(self, plan: dict) -> None:
        self.plan = plan
        self.pid = next(self._pids)
        self.started_at = time.monotonic()
        self.pulse = Page.create()
        self.got: list[ToEngine] = []
        self.is_removed = False
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[ToEngine | None] = asyncio.Queue()
        self._running: dict[str, tuple[Request, list[int]]] = {}
        self._num_sent = 0

    def foretell(self, told: bytes) -> None:
        messages = [decode_to_engine(body) for body in FrameBuffer().feed(told)]
        (self.foretold,) = messages

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        if "dies_before_connecting" in self.plan:
            self._end(1)
            return None
        ours, theirs = socket.socketpair()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=theirs)
        streams = await asyncio.open_unix_connection(sock=ours)
        self._task = asyncio.create_task(self._play())
        return streams

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._code is not None
        return self._code

    def kill(self) -> None:
        if self._task is not None and "cannot_be_killed" not in self.plan:
            self._task.cancel()

    def remove(self) -> None:
        self.is_removed = True
        self.pulse.close()

    def abandon(self) -> None:
        self.kill()
        self.remove()

    def _end(self, code: int) -> None:
        self._code = code
        self._ended.set()

    def say(self, message: FromEngine) -> None:
        self._writer.write(frame(message))

    async def _play(self) -> None:
        code = -9
        listening = asyncio.create_task(self._listen())
        try:
            code = await self._engine()
        finally:
            listening.cancel()
            self._writer.close()
            self._end(code)

    async def _engine(self) -> int:
        plan = self.plan
        start = await self._next()
        assert isinstance(start, StartEngine) and start == self.foretold
        self.say(Loading(phase="weights", fraction=0.5))
        if "fatal_in_load" in plan:
            self.say(Fatal(FATAL))
            return 1
        if "gate" in plan:
            await plan["gate"].wait()
        if "hangs_in_load" in plan:
            await asyncio.Event().wait()
        if code := plan.get("dies_in_load"):
            return int(code)
        self.say(READY)
        if "dies_idle" in plan:
            return -9
        while True:
            await self._drain()
            if any(isinstance(message, Shutdown) for message in self.got):
                return 0
            if self._running.keys() & plan.get("poison", set()):
                if "fatal" in plan:
                    self.say(Fatal(plan["fatal"]))
                return int(plan.get("code", -11))
            if "hangs" in plan:
                await asyncio.Event().wait()
            self._step()
            if self._num_sent >= plan.get("tokens", 1 << 30):
                if "garbage" in plan:
                    self._writer.write(b"\x05\x00\x00\x00what?")
                    await asyncio.Event().wait()
                if "fatal" in plan:
                    self.say(Fatal(plan["fatal"]))
                return int(plan.get("code", -9))

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._inbox.put_nowait(decode_to_engine(await read_frame(self._reader)))
        self._inbox.put_nowait(None)

    async def _next(self) -> ToEngine:
        message = await self._inbox.get()
        if message is None:
            raise asyncio.CancelledError
        self.got.append(message)
        return message

    async def _drain(self) -> None:
        """Take what is there; sleep when there is nothing to do."""
        await asyncio.sleep(0)
        while not self._running or not self._inbox.empty():
            match await self._next():
                case Submit(request):
                    self._running[request.id] = (request, list(request.resumed))
                    self.say(Started(ids=(request.id,), at=time.monotonic()))
                case Cancel(ids):
                    for request_id in ids:
                        self._running.pop(request_id, None)
                case Shutdown():
                    return

    def _step(self) -> None:
        events: list[Event] = []
        for request, output in list(self._running.values()):
            output.append(token_at(request, len(output)))
            self._num_sent += 1
            events.append(TokenOut(id=request.id, token_ids=(output[-1],)))
            if len(output) == request.max_tokens:
                del self._running[request.id]
                events.append(_finished(request, len(output)))
        if events:
            stats = EngineStats(num_steps=1, generation_tokens=self._num_sent, num_blocks=10)
            stats = self.plan.get("stats", stats)
            self.say(Events(tuple(events), stats))


def _finished(request: Request, num_output: int) -> Finished:
    return Finished(
        id=request.id,
        reason="length",
        stop_token=None,
        num_prompt=request.num_prompt,
        num_output=num_output,
        num_cached=0,
        num_preemptions=0,
        timing=RequestTiming(
            arrived=request.arrived, admitted=1.0, first_token=2.0, last_token=3.0
        ),
    )


def request(name: str, max_tokens: int = 12, seed: int = 3) -> Request:
    return Request(
        id=name,
        token_ids=(1, 2, 3),
        params=SamplingParams(),
        max_tokens=max_tokens,
        seed=seed,
        arrived=0.0,
    )


async def answer(client: EngineClient, asked: Request) -> list[int]:
    tokens: list[int] = []
    async for event in client.generate(asked):
        if isinstance(event, TokenOut):
            tokens.extend(event.token_ids)
        elif isinstance(event, Failed):
            raise AssertionError(event.error.code)
        else:
            assert isinstance(event, Finished) and event.num_output == len(tokens)
    return tokens


def expected(asked: Request) -> list[int]:
    return [token_at(asked, i) for i in range(asked.max_tokens)]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.001)


def client_of(script: Script, **options: object) -> EngineClient:
    return EngineClient(EngineConfig(**options), script.launch)  # type: ignore[arg-type]


def many() -> list[Request]:
    return [request(f"r{i}", max_tokens=4 + i, seed=i) for i in range(9)]


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        ({"tokens": 20}, "signal"),
        ({"tokens": 20, "code": 3}, "exit"),
        ({"tokens": 20, "fatal": FATAL, "code": 1}, "fatal"),
        ({"tokens": 20, "garbage": True}, "connection"),
    ],
)
async def test_streams_go_on_whatever_the_process_ends_from(
    plan: dict, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script([plan, plan, {}])
    caplog.set_level(logging.WARNING)
    async with client_of(script) as client:
        await client.wait_ready()
        asked = many()
        answers = await asyncio.gather(*(answer(client, one) for one in asked))
        assert answers == [expected(one) for one in asked]
        assert client.status().state == "ready" and client.status().restarts == ((kind, 2),)
        total = sum(len(tokens) for tokens in answers)
        assert client.stats.generation_tokens == total, "counters go on over processes"
    assert len(script.processes) == 3 and all(one.is_removed for one in script.processes)
    assert caplog.text.count("restart 1 of 5 in a row") == 2
    assert "open requests go on" in caplog.text


async def test_who_follows_steps_follows_those_of_the_next_process_too() -> None:
    script = Script([{"tokens": 5}, {}])
    record = StepRecord(step=1, at=0.0, elapsed_s=0.1, gap_s=0.0, num_tokens=0, slices=())
    async with client_of(script) as client, contextlib.aclosing(client.follow_steps()) as steps:
        first = asyncio.ensure_future(anext(steps))
        await client.wait_ready()
        for number in (0, 1):
            await until(lambda n=number: len(script.processes) > n)  # type: ignore[misc]  # bound now
            process = script.processes[number]
            # Asked for with the first request that each gets: messages arrive in order.
            await answer(client, request(f"r{number}", max_tokens=4))
            assert FollowSteps(CREDIT) in process.got
            process.say(Steps((record,)))
            assert await first == Steps((record,))
            first = asyncio.ensure_future(anext(steps))
            await answer(client, request(f"s{number}", max_tokens=4))
        assert len(script.processes) == 2
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert script.processes[1].got.count(FollowSteps(CREDIT)) == 1


async def test_all_that_only_grows_goes_on_over_processes() -> None:
    gauges = {"num_running", "num_waiting", "num_blocks", "num_free_blocks", "queued_tokens"}
    gauges |= {"pending_tokens", "last_step_tokens", "last_step_s", "step_time", "faults"}
    gauges |= {"num_deferred"}
    grows = {name: 2 for name in EngineStats.__struct_fields__ if name not in gauges}
    one = EngineStats(**grows, faults=(("sample", 2), ("kv_epoch", 1)), queued_tokens=7)  # type: ignore[arg-type]
    script = Script([{"tokens": 2, "stats": one}, {"stats": one, "gate": asyncio.Event()}])
    async with client_of(script) as client:
        await client.wait_ready()
        asked = request("a", max_tokens=9)
        running = asyncio.create_task(answer(client, asked))
        await until(lambda: client.status().state == "restarting")
        assert client.stats.faults == one.faults
        assert client.stats.queued_tokens == len(asked.token_ids) + 2, "all of it is to be computed"
        script.plans[1]["gate"].set()
        await running
        assert {name: getattr(client.stats, name) for name in grows} == dict.fromkeys(grows, 4)
        assert dict(client.stats.faults) == {"sample": 4, "kv_epoch": 2}
        assert client.stats.queued_tokens == 7, "a gauge"


async def test_a_hung_engine_is_restarted_for_the_asking() -> None:
    gate = asyncio.Event()
    script = Script([{"hangs": True}, {"gate": gate}])
    async with client_of(script) as client:
        assert not client.restart("too early"), "the first start is the operator's to watch"
        await client.wait_ready()
        asked = request("a")
        running = asyncio.create_task(answer(client, asked))
        await until(lambda: len(script.processes[0].got) == 2)
        assert client.restart("nothing finished for 10 s")
        await until(lambda: client.status().state == "restarting")
        assert client.status().reason == "nothing finished for 10 s"
        gate.set()
        assert await running == expected(asked)
        assert client.status().restarts == (("asked", 1),)
    assert not client.restart("too late")


async def test_requests_that_come_meanwhile_wait_up_to_a_bound() -> None:
    script = Script([{"tokens": 1}, {"hangs_in_load": True}, {}])
    async with client_of(script, max_num_queued_reqs=1, max_num_seqs=1) as client:
        first = await client.wait_ready()
        one = asyncio.create_task(answer(client, request("one")))
        await until(lambda: client.status().state == "restarting")
        assert client.ready == first, "what was started is still what requests are checked against"
        two = asyncio.create_task(answer(client, request("two")))
        await until(lambda: client.stats.num_waiting == 1 and len(client._supervisor.streams) == 2)
        with pytest.raises(OverloadError, match="engine restarts"):
            await answer(client, request("three"))
        await until(lambda: client.status().phase == "weights")
        assert client.restart("loading hangs")
        assert [await one, await two] == [expected(request("one")), expected(request("two"))]


async def test_a_caller_who_leaves_meanwhile_is_not_asked_for_again() -> None:
    gate = asyncio.Event()
    script = Script([{"hangs": True}, {"gate": gate}])
    async with client_of(script) as client:
        await client.wait_ready()
        gone = asyncio.create_task(answer(client, request("gone")))
        stays = asyncio.create_task(answer(client, request("stays")))
        await until(lambda: len(script.processes[0].got) >= 2)
        client.restart("test")
        await until(lambda: client.status().state == "restarting")
        gone.cancel()
        await asyncio.wait({gone})
        gate.set()
        assert await stays == expected(request("stays"))
        asked = [m.request.id for m in script.processes[1].got if isinstance(m, Submit)]
        assert asked == ["stays"]


async def test_deadlines_are_kept_while_there_is_no_engine() -> None:
    gate = asyncio.Event()
    script = Script([{"tokens": 4}, {"gate": gate}])
    async with client_of(script) as client:
        await client.wait_ready()
        now = time.monotonic()
        passed = replace(request("passed"), deadline=now - 1.0, arrived=now - 2.0)
        soon = replace(request("soon"), deadline=now + 0.05, arrived=now)
        later = replace(request("later"), deadline=now + 60.0, arrived=now)
        asked = [asyncio.create_task(answer(client, one)) for one in (passed, later)]
        await until(lambda: client.status().state == "restarting")
        asked.append(asyncio.create_task(answer(client, soon)))
        async with asyncio.timeout(5):
            ends = await asyncio.gather(asked[0], asked[2], return_exceptions=True)
        assert [str(end) for end in ends] == ["deadline_exceeded"] * 2
        assert len(client._supervisor.streams) == 1 and not gate.is_set()
        gate.set()
        assert await asked[1] == expected(later)


async def test_what_was_ended_is_not_asked_for_again_however_late_its_caller_reads() -> None:
    script = Script([{}])
    async with client_of(script) as client:
        await client.wait_ready()
        slow = client.generate(request("slow", max_tokens=1 << 20))
        first = await anext(slow)
        assert isinstance(first, TokenOut)
        client.cancel("slow")
        client.cancel("nobody")
        await until(lambda: Cancel(("slow",)) in script.processes[0].got)
        client.restart("test")
        await until(lambda: len(script.processes) == 2)
        assert await answer(client, request("next")) == expected(request("next"))
        asked = [m.request.id for m in script.processes[1].got if isinstance(m, Submit)]
        assert asked == ["next"]
        rest = [event async for event in slow]
        assert isinstance(rest[-1], Finished) and rest[-1].reason == "abort"
        told = sum(len(event.token_ids) for event in rest if isinstance(event, TokenOut))
        assert rest[-1].num_output == told + 1


async def test_the_next_engine_is_the_same_engine() -> None:
    script = Script([{"tokens": 1}, {}])
    vocabulary = Vocabulary(tokenizer_json="{}", eos_token_ids=(1,), vocab_size=100)
    async with client_of(script) as client:
        await client.wait_ready()
        client.use_vocabulary(vocabulary)
        client.use_vocabulary(vocabulary)
        await answer(client, request("a"))
    first, second = (process.got for process in script.processes)
    assert isinstance(first[0], StartEngine) and isinstance(second[0], StartEngine)
    assert first[0].config == client.config
    assert second[0].config.max_model_len == READY.max_model_len
    assert second[0].config.kv_cache_memory_bytes == 640
    for got in (first, second):
        assert got[1] == UseVocabulary(vocabulary) and isinstance(got[2], Submit)


@pytest.mark.parametrize(
    "plan",
    [
        {"dies_in_load": -9},
        {"fatal_in_load": True},
        {"dies_before_connecting": True},
        {"cannot_launch": True},
    ],
)
async def test_a_restart_that_fails_is_tried_again(plan: dict) -> None:
    script = Script([{"tokens": 2}, plan, {}])
    async with client_of(script) as client:
        await client.wait_ready()
        assert await answer(client, request("a")) == expected(request("a"))
        assert sum(count for _, count in client.status().restarts) == 2


async def test_a_restart_that_never_gets_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_LOAD_LIMIT_S", 0.02)
    script = Script([{"tokens": 2}, {"hangs_in_load": True}, {}])
    async with client_of(script) as client:
        await client.wait_ready()
        assert await answer(client, request("a")) == expected(request("a"))
        assert dict(client.status().restarts)["asked"] == 1


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_a_crash_loop_ends_with_its_reasons(limit: int) -> None:
    script = Script([{"tokens": 2}, {"dies_in_load": -9}, {"dies_in_load": 3}])
    async with client_of(script, max_engine_restarts=limit) as client:
        await client.wait_ready()
        events = [event async for event in client.generate(request("a"))]
        end = events[-1]
        assert isinstance(end, Failed) and end.error.code == "engine_unavailable"
        assert end.error.status == 503 and "-9 (SIGKILL)" in end.error.message
        assert ("code 3" in end.error.message) == (limit > 1)
        status = client.status()
        assert status.state == "dead"
        assert status.reason.startswith("E-ENGINE-04" if limit else "E-ENGINE-02")
        with pytest.raises(EngineDeadError):
            await answer(client, request("b"))
    assert len(script.processes) == 1 + limit


@pytest.mark.parametrize("window_s", [0.0, 600.0])
async def test_an_idle_engine_that_ends_now_and_then_is_no_loop(
    window_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "IDLE_WINDOW_S", window_s)
    script = Script([{"dies_idle": True}] * 6 + [{}])
    async with client_of(script, max_engine_restarts=3) as client:
        await client.wait_ready()
        await until(lambda: len(script.processes) == 7 or client.status().state == "dead")
        assert (client.status().state == "dead") == bool(window_s)


async def test_ends_while_somebody_waits_are_a_loop_however_far_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise, "IDLE_WINDOW_S", 0.0)
    script = Script([{"tokens": 2}, {"dies_in_load": -9}])
    async with client_of(script, max_engine_restarts=3) as client:
        await client.wait_ready()
        with pytest.raises(AssertionError, match="engine_unavailable"):
            await answer(client, request("a"))
    assert len(script.processes) == 4


async def test_answers_in_between_are_no_loop() -> None:
    script = Script([{"tokens": 2}] * 9 + [{}])
    async with client_of(script, max_engine_restarts=1) as client:
        await client.wait_ready()
        assert await answer(client, request("a", max_tokens=20)) == expected(
            request("a", max_tokens=20)
        )
        assert client.status().restarts == (("signal", 9),)


async def test_a_request_that_engines_end_from_fails_alone() -> None:
    script = Script([{"poison": {"bad"}}])
    async with client_of(script) as client:
        await client.wait_ready()
        asked = [request("r0"), request("bad"), request("r1")]
        results = await asyncio.gather(
            *(answer(client, one) for one in asked), return_exceptions=True
        )
        assert results[0] == expected(asked[0]) and results[2] == expected(asked[2])
        assert isinstance(results[1], AssertionError) and str(results[1]) == "request_fault"
        assert client.status().state == "ready"
        assert client.stats.faults == (("request_fault", 1),)
    assert len(script.processes) <= 1 + 3


async def test_a_machine_on_which_nothing_works_is_not_tried_with_every_request() -> None:
    broken = ErrorInfo(code="E-ENGINE-03", message="all threw, and nobody's token too.", status=500)
    names = [f"r{i}" for i in range(20)]
    script = Script([{"poison": set(names), "fatal": broken, "code": 1}])
    async with client_of(script) as client:
        await client.wait_ready()
        ends = await asyncio.gather(
            *(answer(client, request(name)) for name in names), return_exceptions=True
        )
        assert [str(end) for end in ends].count("engine_unavailable") >= 17
        assert client.status().reason.startswith("E-ENGINE-04")
        assert "nobody's token" in client.status().reason
    assert len(script.processes) == 1 + client.config.max_engine_restarts


async def test_an_engine_that_ends_whatever_it_runs_is_not_the_fault_of_each() -> None:
    asked = [replace(request(f"r{i}"), token_ids=(1, 2, i)) for i in range(20)]
    script = Script([{"poison": {one.id for one in asked}}])
    async with client_of(script) as client:
        await client.wait_ready()
        ends = await asyncio.gather(*(answer(client, one) for one in asked), return_exceptions=True)
        codes = [str(end) for end in ends]
        assert codes.count("request_fault") == 3 and codes.count("engine_unavailable") == 17
        assert client.status().reason.startswith("E-ENGINE-04")
    assert len(script.processes) <= 3 * 3 + client.config.max_engine_restarts + 1


async def test_choices_of_one_poisonous_call_fail_and_the_engine_goes_on() -> None:
    names = {f"bad{i}" for i in range(6)}
    script = Script([{"poison": names}])
    async with client_of(script) as client:
        await client.wait_ready()
        good = replace(request("good"), token_ids=(7, 8))
        ends = await asyncio.gather(
            *(answer(client, request(name)) for name in names),
            answer(client, good),
            return_exceptions=True,
        )
        assert [str(end) for end in ends[:-1]] == ["request_fault"] * 6
        assert ends[-1] == expected(good)


@pytest.mark.parametrize("is_starved", [True, False])
async def test_a_kill_is_a_requests_fault_only_where_memory_ran_out(
    is_starved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count() if is_starved else itertools.repeat(7)
    monkeypatch.setattr(life, "oom_kills", lambda: next(kills))
    script = Script([{"poison": {"bad"}, "code": -9}])
    async with client_of(script) as client:
        await client.wait_ready()
        with pytest.raises(AssertionError) as caught:
            await answer(client, request("bad"))
        assert str(caught.value) == ("request_fault" if is_starved else "engine_unavailable")
        reason = client._supervisor.reason
        assert ("out of memory" in reason) == is_starved
    assert len(script.processes) <= (4 if is_starved else 6)


async def test_a_defect_of_ours_ends_streams_and_hangs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def take(self: Streams, events: object, now: float) -> bool:
        raise ValueError("on purpose")

    monkeypatch.setattr(Streams, "take", take)
    script = Script([{}])
    async with client_of(script) as client:
        await client.wait_ready()
        with pytest.raises(AssertionError, match="engine_unavailable"):
            await answer(client, request("a"))
        assert "on purpose" in client.status().reason
    assert script.processes[0].is_removed


async def test_what_fails_the_first_time_is_final() -> None:
    script = Script([{"fatal_in_load": True}])
    async with client_of(script) as client:
        with pytest.raises(OperatorError, match="a test"):
            await client.wait_ready()
        assert client.status().state == "dead"
    assert len(script.processes) == 1


async def test_a_process_that_cannot_be_killed_has_no_successor() -> None:
    script = Script([{"hangs": True, "cannot_be_killed": True}, {}])
    async with client_of(script) as client:
        await client.wait_ready()
        running = asyncio.create_task(answer(client, request("a")))
        await until(lambda: len(script.processes[0].got) == 2)
        script.processes[0]._writer.close()
        with pytest.raises(AssertionError, match="engine_unavailable"):
            await running
        assert "cannot be killed" in client.status().reason
        script.processes[0].plan.clear()
        script.processes[0].kill()
    assert len(script.processes) == 1


@pytest.mark.parametrize("moment", ["ready", "loading", "pausing"])
async def test_closing_is_no_crash(
    moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if moment == "pausing":
        monkeypatch.setattr(supervise, "_FIRST_PAUSE_S", 60.0)
    plans = {
        "ready": [{"hangs": True}],
        "loading": [{"tokens": 1}, {"hangs_in_load": True}],
        "pausing": [{"tokens": 1}, {"dies_in_load": -9}],
    }
    script = Script(plans[moment])
    client = client_of(script)
    await client.start()
    await client.wait_ready()
    running = asyncio.create_task(answer(client, request("a")))
    if moment == "ready":
        await until(lambda: len(script.processes[0].got) == 2)
    else:
        await until(lambda: len(script.processes) == 2 and client.status().state == "restarting")
        if moment == "pausing":
            await until(lambda: script.processes[1].is_removed)
    await client.close()
    with pytest.raises(AssertionError, match="engine_unavailable"):
        await running
    assert client.fatal is None and client.status().state == "dead"
    assert "E-ENGINE" not in caplog.text
    assert len(script.processes) == len(plans[moment])


async def test_each_snapshot_is_told_and_a_stop_is_no_abort() -> None:
    script = Script([{}])
    seen: list[EngineStats] = []
    async with client_of(script) as client:
        client.watch(seen.append)
        await client.wait_ready()
        asked = request("whole", max_tokens=5)
        assert client.stage("whole") == "elsewhere"
        assert await answer(client, asked) == expected(asked)
        assert [stats.generation_tokens for stats in seen] == [1, 2, 3, 4, 5]
        events = client.generate(request("cut", max_tokens=1 << 20))
        assert isinstance(await anext(events), TokenOut)
        assert client.stage("cut") == "running"
        client.stop("cut")
        assert client.stage("cut") == "elsewhere"
        await events.aclose()
        await until(lambda: Cancel(("cut",), "stop") in script.processes[0].got)
        assert Cancel(("cut",)) not in script.processes[0].got
