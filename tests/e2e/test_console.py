"""The console in a real Chromium, served by a real server with the bundled model: it is used as people use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from browser import Page, browsing, chromium
from fakes import FakeEngine, ServerThread, make_state
from octavo.engine.ipc import Steps
from octavo.meter.steplog import SliceRecord, StepRecord

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here")
READY = "document.querySelector('#dot').dataset.state === 'ready'"
STEP = "Number(document.querySelector('section.batch').dataset.step)"
VIEWS = ("chat", "live", "batch", "requests")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server whose steps hold few tokens, so that prompts come in chunks."""
    code = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ("--port", "0", "--disable-access-log", "--threads", "1", "--canary-interval", "0")
    small = ("--max-num-batched-tokens", "48", "--max-num-seqs", "8")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *flags, *small], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = ""
    for line in process.stdout:
        found = line.split()[1].removesuffix("/v1") if line.startswith("  URL") else found
        if "Python  " in line:
            break
    assert found, "the server ended before it was ready"
    yield found
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()


@contextlib.contextmanager
def busy(url: str, num_callers: int = 4, max_tokens: int = 120) -> Iterator[None]:
    """People ask it things meanwhile; half of them begin with the same words."""
    shared = "The library by the sea has many shelves and a patient keeper. " * 4
    is_over = threading.Event()

    def ask(number: int) -> None:
        while not is_over.is_set():
            prompt = (shared if number % 2 else "") + f"Word {number}. " * 30
            body = {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "temperature": 0.9,
            }
            headers = {"content-type": "application/json"}
            call = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(body).encode(), headers
            )
            with urllib.request.urlopen(call) as answer:
                answer.read()

    with ThreadPoolExecutor(num_callers) as pool:
        asked = [pool.submit(ask, number) for number in range(num_callers)]
        try:
            yield
        finally:
            is_over.set()
        for one in asked:
            one.result(60)


@contextlib.asynccontextmanager
async def console(url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> AsyncIterator[Page]:  # fmt: skip
    """A page with the console, which must have complained of nothing and asked nobody else when it is closed."""
    async with browsing() as page:
        await page.window(width, height, dark=dark, mobile=width < 700)
        await page.open(f"{url}/console")
        try:
            await page.until(READY)
            yield page
        except BaseException as error:
            error.add_note(f"the page said: {page.complaints}")
            raise
        assert page.complaints == []
        assert [one for one in page.loaded if not one.startswith(url)] == []


async def show(page: Page, view: str) -> None:
    await page.run(f"location.hash = '{view}'")
    await page.until(f"document.querySelector('main').className === '{view}'")


def test_a_conversation_shows_its_tokens_and_what_they_took(url: str) -> None:
    async def run() -> None:
        async with console(url) as page:
            await page.until("document.querySelector('#served').value === 'octavo-mini'")
            await page.press("s")
            await page.click("#message")
            await page.type("What is a tuple?")
            await page.press("Enter")
            await page.until("document.querySelectorAll('.tokens .t').length > 3")
            await page.until("document.querySelector('.log').getAttribute('aria-busy') === 'false'")
            assert "<|" not in await page.text(".tokens"), (
                "the token that ends it is none of its text"
            )
            stats = await page.text(".stats")
            assert "first token" in stats and "tokens" in stats, stats
            box = await page.run(
                "(() => { const b = document.querySelectorAll('.tokens .t')[2].getBoundingClientRect();"
                "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
            )
            await page.point(*box)
            await page.until("!document.querySelector('#tip').hidden")
            assert await page.run("document.querySelectorAll('.alternatives .bar').length") >= 5
            assert "%" in await page.text("#tip")
            await page.run("document.querySelector('.tokens').focus()")
            await page.press("ArrowRight")
            await page.until("document.querySelector('.tokens .t.on').dataset.i === '3'")
            # A second turn is sent with the first; it is cut off half way.
            await page.click("#ignore-eos")
            await page.run(
                "(() => { const most = document.querySelector('#max_tokens'); most.value = '1500';"
                "most.dispatchEvent(new Event('input')); })()"
            )
            await page.click("#message")
            await page.type("Tell me more.")
            await page.press("Enter")
            await page.until(
                "document.querySelectorAll('.answer')[1]?.querySelectorAll('.t').length > 5"
            )
            await page.press("Escape")
            await page.until(
                "document.querySelectorAll('.stats')[1].textContent.includes('stopped')"
            )

    asyncio.run(run())


def test_the_batch_moves_and_can_be_stepped_through(url: str) -> None:
    async def run() -> None:
        async with console(url) as page:
            await show(page, "batch")
            first = await page.until(STEP)
            # By then, all who ran before the page looked have ended.
            await page.until(f"{STEP} > {first} + 250")
            await page.until(
                "document.querySelector('.batch .told').textContent.includes('of prompts')"
            )
            assert await page.run("document.querySelector('.batch canvas').height") > 100
            await page.press(" ")
            held = await page.run(STEP)
            await page.press("ArrowLeft")
            assert await page.until(f"{STEP} === {held} - 1 && {STEP}") == held - 1
            await page.press("ArrowDown")
            await page.until("document.querySelectorAll('.batch .table li').length > 0")
            await page.press("Home")
            await page.until(f"{STEP} < {held} - 5")
            await page.press("End")
            await page.until(f"{STEP} > {held}")

    with busy(url):
        asyncio.run(run())


def test_charts_and_requests_follow_the_work(url: str) -> None:
    async def run() -> None:
        async with console(url) as page:
            await show(page, "live")
            await page.until("Number(document.querySelector('#tile-running').textContent) >= 2")
            await page.until("document.querySelector('#tile-itl').textContent.includes('ms')")
            await page.until("document.querySelector('#tile-ttft').textContent !== '–'")
            names = (
                "[...document.querySelectorAll('.chart canvas')].map(one => one.ariaLabel).join()"
            )
            for name in ("Tokens per second", "Time to first token", "KV blocks", "Step time"):
                assert name in await page.run(names)
            await show(page, "requests")
            await page.until("document.querySelectorAll('.requests tbody tr').length >= 4")
            await page.press("a")
            await page.press("ArrowDown")
            await page.until(
                "document.querySelector('.request dl')?.textContent.includes('/v1/completions')"
            )
            assert await page.run("document.querySelectorAll('.request .why-bar i').length") >= 1

    with busy(url):
        asyncio.run(run())


def test_a_chosen_request_is_followed_to_its_end_and_the_keyboard_keeps_its_place(url: str) -> None:
    """Rows are made anew twice a second, and what was told of a request that runs is soon out of date."""
    detail = "document.querySelector('aside.request').textContent"

    async def run() -> None:
        async with console(url) as page:
            await show(page, "requests")
            await page.until("document.querySelectorAll('.requests tbody tr').length > 2")
            await page.run("document.querySelector('.requests tbody button').focus()")
            name = await page.run("document.activeElement.dataset.id")
            await page.run("document.activeElement.isOld = true")
            await page.until("!document.querySelector('.requests tbody button')?.isOld")
            assert await page.run("document.activeElement.dataset.id") == name
            await page.press("a")
            await page.press("ArrowDown")
            await page.until(f"{detail}.includes('generating')")
            await page.until(f"{detail}.includes('ended')")
            await page.press("Escape")
            await page.until("document.querySelector('aside.request').hidden")

    with busy(url, 3, 1800):
        asyncio.run(run())


CHECK_TABLES = """(async () => {
    const { Steps, Tables } = await import("/console/js/steps.js");
    const steps = new Steps();
    const flat = (tables) => JSON.stringify([[...tables.byId], [...tables.fresh], [...tables.ghosts].sort()]);
    let block = 0;
    for (let n = 1; n <= 700; n++) {
        const slices = [0, 1, 2].map((k) => [3 * Math.floor(n / 7) + k, n, 1, 1, ...(n % 3 === k ? [++block % 50] : [])]);
        const isNew = n % 7 === 0 || n === 1;
        const ids = slices.map((one) => one[0]);
        const ended = isNew && n > 1 ? ids.map((one) => one - 3) : [];
        steps.add([[n, n, 1, 0, 50, 10, [], isNew ? ids : [], ended, slices, isNew ? ids.map((one) => [one, `r${one}`]) : []]]);
        if (n % 11) continue;
        const index = (n * 37) % steps.list.length; // forth and back
        for (const at of [index, steps.list.length - 1]) {
            const fresh = steps.base.copy();
            for (let i = 0; i <= at; i++) fresh.apply(steps.list[i]);
            if (flat(fresh) !== flat(steps.tablesAt(at))) return `differs at ${n}, ${at}`;
        }
    }
    return "same";
})()"""
CHECK_WITHOUT = """(async () => {
    const { RequestsView } = await import("/console/js/requests.js");
    const feed = Object.assign(new EventTarget(), { state: "live", calls: [], steps: { requests: new Map() } });
    const view = new RequestsView(feed);
    const [id, other] = ["a".repeat(32), "b".repeat(32)];
    const timing = { request_id: id, first_token_s: 0.2, parts: [{ name: "decode", seconds: 1 }], costliest: [{ id: other, seconds: 0.5 }] };
    const button = () => [...view.detail.querySelectorAll("button")].find((one) => one.textContent.startsWith("Replay"));
    view.chosen = id;
    view.detailOf.set(id, { state: "generating", timing });
    view.tellChosen();
    const early = Boolean(button());
    view.detailOf.set(id, { state: "ended", timing });
    view.tellChosen();
    const fetched = [], real = window.fetch;
    window.fetch = async (url) => {
        fetched.push(String(url));
        const isFirst = fetched.length === 1;
        const body = isFirst ? { error: { message: "another request is being replayed." } } : { what_if: { told: "Sooner." } };
        return new Response(JSON.stringify(body), { status: isFirst ? 429 : 200, headers: { "content-type": "application/json" } });
    };
    const said = [];
    for (let turn = 0; turn < 2; turn++) {
        view.toldWithout.clear();
        view.tellChosen();
        button().click();
        while (view.toldWithout.get(id).words.startsWith("Replaying")) await new Promise((go) => setTimeout(go));
        view.tellChosen();
        said.push(view.detail.querySelector("section:last-of-type p").textContent);
    }
    window.fetch = real;
    return [early, fetched.every((one) => one.endsWith(`/v1/requests/${id}?what_if=true`)), ...said];
})()"""
CHECK_COST = """(async () => {
    const { CostView } = await import("/console/js/cost.js");
    const line = { by: {}, requests: 4, prompt_tokens: 100, cached_tokens: 0, computed_tokens: 100, output_tokens: 60,
        lost_tokens: 10, prefill_s: 1, decode_s: 1, aborted_s: 1, cost: 3, prefill_cost: 1, decode_cost: 1 };
    const view = new CostView();
    view.draw({ currency_per_device_hour: 3600, accounts: null, data: [line] }, []);
    return [...view.element.querySelectorAll("tbody tr > *")].map((one) => one.textContent);
})()"""


def test_what_is_shown_is_worked_out_right(url: str) -> None:
    async def run() -> None:
        async with console(url) as page:
            assert await page.run(CHECK_TABLES) == "same"
            without = [False, True, "another request is being replayed.", "Sooner."]
            assert await page.run(CHECK_WITHOUT) == without
            cells = await page.run(CHECK_COST)
            assert cells[:-1] == [
                "all",
                "4",
                "100",
                "0",
                "60",
                "3.00 s",
                "3.00",
                *("10,000.00", "20,000.00"),
            ]
            said = "import('/console/js/dom.js').then((dom) => [659.7, 119.9, 179.4].map(dom.duration))"
            assert await page.run(said) == ["11 min 0 s", "119.9 s", "2 min 59 s"]

    asyncio.run(run())


def test_dark_light_help_and_a_phone(url: str) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    is_wide = "document.documentElement.scrollWidth > innerWidth"

    async def run() -> None:
        async with console(url, width=375, height=740, dark=True) as page:
            dark = await page.run(background)
            for view in VIEWS:
                await show(page, view)
                await page.until("document.querySelector('main').children.length === 1")
                assert not await page.run(is_wide), view
            await page.run("document.activeElement.blur()")
            await page.press("d")
            light = await page.run(background)
            assert light != dark
            await page.reload()
            assert await page.run(background) == light, "what was chosen stays"
            await page.press("?")
            await page.until("document.querySelector('dialog[open] kbd')")
            await page.press("Escape")
            await page.until("!document.querySelector('dialog')")

    with busy(url, 2):
        asyncio.run(run())


def test_a_key_is_asked_for_and_kept_in_the_tab() -> None:
    """A user's key opens the playground; what shows everybody's work says that it needs more."""
    state = make_state(keys=("the-key",))

    async def run(server: str) -> None:
        async with browsing() as page:
            await page.window(375, 740, mobile=True)
            await page.open(f"{server}/console")
            await page.until("document.querySelector('dialog[open] #api-key')")
            assert await page.run("document.documentElement.scrollWidth") == 375, "on a phone, too"
            await page.window(1440, 900)
            await page.type("the-key")
            await page.press("Enter")
            await page.until(READY)
            await page.until("document.querySelector('#served').value")
            assert await page.run("sessionStorage.getItem('octavo.key')") == "the-key"
            assert "the-key" not in await page.run("JSON.stringify(localStorage) + document.cookie")
            assert not any("the-key" in one for one in page.loaded)

    with ServerThread(state) as server:
        asyncio.run(run(server.url))


def test_sharing_and_giving_way_are_drawn() -> None:
    """Steps as they would be under pressure, from an engine that says so."""
    engine = FakeEngine()

    def step(number: int, *slices: SliceRecord, started: tuple[str, ...] = (), ended: tuple[str, ...] = ()) -> StepRecord:  # fmt: skip
        return StepRecord(step=number, at=time.time(), elapsed_s=0.01, gap_s=0.0, num_tokens=40, slices=slices, started=started, ended=ended, waiting=(("no_room", 3),), num_blocks=100, num_free_blocks=90)  # fmt: skip

    def piece(name: str, start: int, count: int, blocks: tuple[int, ...] = ()) -> SliceRecord:
        return SliceRecord(id=name, start=start, num_tokens=count, num_sampled=1, blocks=blocks)

    one, two = "cmpl-" + "a" * 32, "cmpl-" + "b" * 32
    engine.steps = [
        Steps((step(1, piece(one, 0, 32, (1, 2)), started=(one,)),)),
        Steps((step(2, piece(one, 32, 1, (3,)), piece(two, 16, 24, (1, 4, 5)), started=(two,)),)),
        Steps((step(3, piece(one, 33, 1), ended=(two,)),)),
        Steps((step(4, piece(one, 34, 1), piece(two, 16, 25, (1, 7, 8)), started=(two,)),)),
    ]

    async def run(server: str) -> None:
        async with console(server) as page:
            await show(page, "batch")
            await page.until(f"{STEP} === 4")
            kv = await page.text(".kv .told")
            assert "10 of 100 in use" in kv and "1 shared" in kv, kv
            assert "3 wait: no KV blocks" in await page.text(".batch .why")
            await page.press("ArrowDown")
            await page.press("ArrowDown")
            await page.until(
                "document.querySelector('.detail h2').textContent.includes('bbbbbbbb')"
            )
            assert "gave way 1×" in await page.text(".detail .told")
            blocks = await page.run("[...document.querySelectorAll('.table li')].map(one => one.textContent)")  # fmt: skip
            assert blocks == ["01", "17", "28"], "place and block"
            assert await page.run("document.querySelectorAll('.table .shared').length") == 1
            await page.press("ArrowLeft")
            await page.until("document.querySelector('.detail').textContent.includes('holds none')")

    with ServerThread(make_state(engine)) as server:
        asyncio.run(run(server.url))
