"""The console's files and its stream: who gets what, how much at most, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.core.errors import OverloadError
from octavo.engine.ipc import Steps
from octavo.meter.steplog import SliceRecord, StepRecord
from octavo.server import feed
from octavo.server.console.events import SLOW_S, _Timely
from octavo.server.console.pages import FOLDER, TYPES, pages
from octavo.server.feed import MAX_WATCHERS, Feed
from octavo.server.limits import ClientGone
from octavo.server.state import AppState

KEYED = InProcess(make_state(keys=("key",)))
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
MAX_LINES = 300


def step(number: int, *slices: SliceRecord, **more: Any) -> StepRecord:
    return StepRecord(
        step=number,
        at=1000.0 + number,
        elapsed_s=0.002,
        gap_s=0.001,
        num_tokens=sum(one.num_tokens for one in slices),
        slices=slices,
        num_blocks=9,
        num_free_blocks=4,
        **more,
    )


def piece(name: str, start: int, count: int = 1, sampled: int = 1, **more: Any) -> SliceRecord:
    return SliceRecord(id=name, start=start, num_tokens=count, num_sampled=sampled, **more)


async def frames_of(watched: Feed, count: int) -> list[dict[str, Any]]:
    async with aclosing(watched.watch(count, lambda: False)) as frames:
        return [json.loads(one) async for one in frames]


def steps_of(frames: list[dict[str, Any]]) -> list[Any]:
    return [one for frame in frames for one in frame.get("steps", [])]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame at each turn of the loop."""
    monkeypatch.setattr(feed, "TICK_S", 0.0)
    monkeypatch.setattr(feed, "SAMPLE_S", 0.0)


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_file_is_served_without_a_key_and_by_nothing_but_its_name() -> None:
    assert {*FILES} == {*pages()} and "js/main.js" in FILES
    for name in FILES:
        answer = KEYED.call("GET", f"/console/{name}")
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert KEYED.call("GET", "/console").content == (FOLDER / "index.html").read_bytes()


def test_files_may_load_nothing_from_elsewhere() -> None:
    for name in ("", "/js/main.js", "/style.css", "/icon.svg"):
        headers = KEYED.call("GET", f"/console{name}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy and "data:" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    for path in FOLDER.rglob("*.*"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|innerHTML|eval\(", text), path
        assert path.suffix != ".js" or len(text.splitlines()) < MAX_LINES, path
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
    assert {f"console/{name}" for name in ("js/main.js", "style.css", "views.css")} <= {
        *re.findall(r'(?:src|href)="([^"#]+)"', page)
    }


def test_modules_import_only_what_there_is() -> None:
    for path in FOLDER.glob("js/*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text()):
            assert (path.parent / name).is_file(), (path, name)


def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    first = KEYED.call("GET", "/console/style.css")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for given in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        again = KEYED.call("GET", "/console/style.css", headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = KEYED.call("GET", "/console/style.css", headers={"if-none-match": '"x"'})
    assert other.status_code == 200
    assert KEYED.call("GET", "/console/views.css").headers["etag"] != etag


@pytest.mark.parametrize(
    "name",
    ["../server/app.py", "js/../../server/app.py", "/etc/passwd", "js", "js/", "%2e%2e/app.py"]
    + ["style.css/", "style.css%00", "STYLE.CSS", "..\\server\\app.py", "js//main.js", "x" * 5000],
)
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    """As a server puts it into the scope, without a client tidying it up."""
    found: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/console/{name}",
        "raw_path": b"",
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "headers": [],
        "server": ("test", 80),
    }
    asyncio.run(KEYED.app(scope, asyncio.Event().wait, send))
    assert found == [404]


def test_a_slash_too_many_leads_back_without_the_host_header() -> None:
    answer = KEYED.call("GET", "/console/", headers={"host": "evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (308, "../console")


# -- the stream --------------------------------------------------------------------------------------------------------


def test_the_stream_tells_what_was_started_and_how_it_is() -> None:
    headers = {"authorization": "Bearer key"}
    answer = KEYED.call("GET", "/console/events?frames=1", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frame = json.loads(answer.text.removeprefix("data: "))
    about, sample = frame["about"], frame["sample"]
    assert (about["model"], about["num_blocks"], about["block_size"]) == ("fake-model", 100, 16)
    assert len(sample["ttft"]) == len(about["ttft_bounds"]) + 1
    assert (sample["state"], sample["blocks"], sample["free"]) == ("ready", 100, 100)
    assert KEYED.call("GET", "/console/events?frames=1").status_code == 401


@pytest.mark.parametrize(
    "query",
    ["frames=0", "frames=-1", "frames=x", "frames=", "frames=1000001", "frames=٣", "f=1"]
    + ["frames=1&frames=2", "frames=1&x=1", "=", "frames=1.5", "frames=99999999"],
)
def test_other_queries_are_refused(query: str) -> None:
    headers = {"authorization": "Bearer key"}
    answer = KEYED.call("GET", f"/console/events?{query}", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "frames"


def test_samples_follow_the_numbers(fast: None) -> None:
    engine = FakeEngine()
    state = make_state(engine)

    async def run() -> list[dict[str, Any]]:
        async with aclosing(state.console.watch(3, lambda: False)) as frames:
            seen = [json.loads(await anext(frames))]
            state.metrics.observe_first_token(0.02)
            state.metrics.observe_gap(0.004)
            engine._count(num_running=2, generation_tokens=7)
            return seen + [json.loads(one) async for one in frames]

    first, second, _ = (one["sample"] for one in asyncio.run(run()))
    assert (first["output"], second["output"], second["running"]) == (0, 7, 2)
    assert first["ttft"][-1] == 0 and second["ttft"][-1] == 1 and second["itl"][-1] == 1
    assert second["ttft"][:4] == [0, 0, 0, 1], "0.02 s lies in the bucket up to 0.025"


def test_steps_name_requests_once_and_carry_blocks(fast: None) -> None:
    engine = FakeEngine()
    first = step(
        1, piece("a", 0, 40, 0, blocks=(1, 2, 3)), started=("a",), waiting=(("no_row", 2),)
    )
    second = step(2, piece("a", 40), piece("b", 16, 4, failed=True, blocks=(1, 4)), started=("b",))
    engine.steps = [Steps((first,)), Steps((second, step(3, ended=("b",))))]
    frames = asyncio.run(frames_of(make_state(engine).console, 20))
    one, two, three = steps_of(frames)
    assert one == [1, 1001.0, 0.002, 0.001, 9, 4, [["no_row", 2]], [0], [], [[0, 0, 40, 0, 1, 2, 3]], [[0, "a"]]]  # fmt: skip
    assert two[9] == [[0, 40, 1, 1], [1, 16, 4, -1, 1, 4]] and two[10] == [[1, "b"]]
    assert three[8:] == [[1], [], []]
    assert frames[0]["names"] == []


def test_the_engine_says_steps_only_while_somebody_watches(fast: None) -> None:
    engine = FakeEngine()
    engine.steps = [Steps((step(1, piece("a", 0), started=("a",)),))]
    console = make_state(engine).console

    async def run() -> list[int]:
        found = []
        async with aclosing(console.watch(None, lambda: False)) as frames:
            while not steps_of([json.loads(await anext(frames))]):
                pass
            found.append(engine.num_followers)
            async with aclosing(console.watch(2, lambda: False)) as others:
                late = [json.loads(one) async for one in others]
            assert [one[0] for one in steps_of(late)] == [1], "what is kept is told again"
            assert late[0]["names"] == [[0, "a"]]
            found.append(engine.num_followers)
        await asyncio.sleep(0)
        return [*found, engine.num_followers, console.num_watchers]

    assert asyncio.run(run()) == [1, 1, 0, 0]


def test_who_falls_behind_is_told_how_much(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_KEPT_STEPS", 3)
    console = make_state(FakeEngine()).console

    async def run() -> list[dict[str, Any]]:
        async with aclosing(console.watch(5, lambda: False)) as frames:
            seen = [json.loads(await anext(frames))]
            ended = step(5, piece("b", 0), ended=("a",))
            console._take(Steps((*[step(i, piece("a", i)) for i in range(1, 5)], ended)))
            seen.append(json.loads(await anext(frames)))
            console._take(Steps((step(9, piece("c", 0)),), num_lost=3))
            seen.append(json.loads(await anext(frames)))
            console._take(Steps(tuple(step(i, piece("c", i)) for i in range(10, 14))))
            seen.append(json.loads(await anext(frames)))
            return seen

    _, behind, lost, on = asyncio.run(run())
    assert behind["missed"] == 2 and [one[0] for one in behind["steps"]] == [3, 4, 5]
    assert sorted(name for _, name in behind["names"]) == ["a", "b"]
    assert lost["missed"] == 3 and [one[0] for one in lost["steps"]] == [9]
    assert [name for _, name in on["names"]] == ["c"] and on["missed"] == 1
    assert len(console._steps) == 0 and not console._handles, "nobody watches any more"


def test_a_frame_has_an_end(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_FRAME_BYTES", 200)
    engine = FakeEngine()
    engine.steps = [Steps(tuple(step(i, piece("a", i)) for i in range(1, 21)))]
    frames = asyncio.run(frames_of(make_state(engine).console, 40))
    assert [one[0] for one in steps_of(frames)] == [*range(1, 21)]
    assert max(len(json.dumps(frame.get("steps", []))) for frame in frames) < 300


def test_so_many_may_watch_and_no_more(fast: None) -> None:
    state = make_state()

    async def run() -> None:
        open_ones = [state.console.watch(None, lambda: False) for _ in range(MAX_WATCHERS)]
        for one in open_ones:
            await anext(one)
        with pytest.raises(OverloadError, match=f"at most {MAX_WATCHERS}"):
            await anext(state.console.watch(None, lambda: False))
        answer = await InProcess(state).acall("GET", "/console/events?frames=1")
        assert answer.status_code == 429 and "retry-after" in answer.headers
        await open_ones[0].aclose()
        assert (await InProcess(state).acall("GET", "/console/events?frames=1")).is_success
        for one in open_ones:
            await one.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("flag", ["is_draining", "is_leaving"])
def test_a_server_that_goes_ends_its_streams(flag: str) -> None:
    state: AppState = make_state()
    setattr(state, flag, True)
    answer = InProcess(state).call("GET", "/console/events")
    assert answer.text.count("data: ") == 1


def test_a_reader_that_takes_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SLOW_S >= 5, "longer than a page that is busy"
    monkeypatch.setattr("octavo.server.console.events.SLOW_S", 0.01)

    async def response(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start"})

    async def stuck(message: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClientGone):
        asyncio.run(_Timely(response, "id")({}, asyncio.Event().wait, stuck))


def test_calls_are_told_with_their_tenant_and_never_their_words(fast: None) -> None:
    engine = FakeEngine()
    engine.pause_after = 2
    state = make_state(engine)

    async def run() -> dict[str, Any]:
        body = {"prompt": "a secret word", "max_tokens": 9}
        call = asyncio.create_task(InProcess(state).acall("POST", "/v1/completions", json=body))
        while not engine.submitted or not state.calls:
            await asyncio.sleep(0)
        while not any(one.requests for one in state.calls):
            await asyncio.sleep(0)
        (frame,) = await frames_of(state.console, 1)
        engine.release.set()
        await call
        return frame

    frame = asyncio.run(run())
    (row,) = frame["calls"]
    assert (row["route"], row["max_tokens"], row["choices"]) == ("/v1/completions", 9, 1)
    assert "secret" not in json.dumps(frame)


def test_samples_from_before_anybody_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state()

    async def run() -> list[dict[str, Any]]:
        ticks = iter(range(3))

        async def tick(seconds: float) -> None:
            if next(ticks, None) is None:
                raise asyncio.CancelledError

        monkeypatch.setattr("octavo.server.feed.asyncio.sleep", tick)
        with pytest.raises(asyncio.CancelledError):
            await state.console.run()
        monkeypatch.undo()
        return await frames_of(state.console, 1)

    (frame,) = asyncio.run(run())
    assert len(frame["history"]) == 3
