"""The ledger on disk, on both databases: what is added is there once, and what is asked for sums up."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

import postgres
from octavo.core.errors import ConfigError, RequestError
from octavo.meter.metrics import Metrics
from octavo.server.costs import desk as desks
from octavo.server.costs.book import Batch, Line
from octavo.server.costs.budget import Budget
from octavo.server.costs.desk import CostDesk
from octavo.server.costs.entry import End, Entry
from octavo.server.costs.report import dimensions, moment, usage
from octavo.server.costs.store import LedgerStore, Life, Sum
from octavo.server.costs.tags import Tags
from octavo.tools.cost import Price, break_even

ANN = Tags("ann", "key_1", "search", "m")
BOB = Tags("bob", "key_2", "", "m")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if postgres.programs() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres.postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/folder/ledger.sqlite3"
        return
    name = request.getfixturevalue("server")
    yield name
    from octavo.server.costs.store import _data

    store = LedgerStore(name)
    with store._engine.begin() as db:  # a test that failed left some open, with locks
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()"
        )
        db.exec_driver_sql(f"{others} AND backend_type = 'client backend'")
    _data.drop_all(store._engine)
    store.close()


def life(number: int = 1, price: float | None = 3600.0, began: float = 6000.0) -> Life:
    return Life(f"{number:032x}", "m", began, price)


def entry(name: str, tags: Tags = ANN, wasted: str | None = None) -> Entry:
    made = Entry(name, tags, 10, 6001.0)
    made.output, made.prefill_s, made.decode_s = 5, 1.0, 2.0
    made.end = End("stop" if wasted is None else "abort", wasted, 4, 2)  # type: ignore[arg-type]  # an account
    return made


def batch(until: float, *amounts: tuple[int, Tags, str, float], entries: list[Entry] = []) -> Batch:  # noqa: B006  # only read
    return Batch({Line(m, tags, item): a for m, tags, item, a in amounts}, entries, until)


def test_sums_are_added_once_and_read_by_columns(url: str) -> None:
    store = LedgerStore(url)
    store.add_life(life())
    first = batch(
        6060.0,
        (100, ANN, "prefill", 10.0),
        (100, ANN, "tokens:prompt", 100.0),
        (100, ANN, "requests:stop", 2.0),
        (100, BOB, "decode", 20.0),
        (100, Tags(model="m"), "idle", 30.0),
        entries=[entry("a"), entry("b", BOB, "failed")],
    )
    store.write(life(), 1, first)
    store.write(life(), 1, first)  # its answer was lost
    store.write(life(), 2, batch(6120.0, (101, ANN, "prefill", 60.0), (100, ANN, "prefill", 0.0)))
    store.write(life(), 3, batch(6121.0))
    other = LedgerStore(url, create=False)
    other.add_life(life(2, None, 6060.0))
    other.write(life(2, None), 1, batch(6120.0, (101, BOB, "failed", 60.0)))
    report = usage(other, ["tenant", "key"], 6000.0, 6120.0)
    assert report.covered_s == pytest.approx(180.0) and report.currency_per_device_hour == 3600.0
    named = {line.by["tenant"]: line for line in report.data}
    assert named["ann"].by == {"tenant": "ann", "key": "key_1"}
    assert (named["ann"].prefill_s, named["ann"].prompt_tokens, named["ann"].requests) == (
        70,
        100,
        2,
    )
    assert (named["bob"].decode_s, named["bob"].failed_s) == (20, 60)
    assert report.accounts is not None
    assert sum(one.device_s for one in report.accounts) == pytest.approx(180.0)
    mine = usage(store, ["feature"], 6060.0, tenant="ann")
    assert mine.accounts is None and [line.by for line in mine.data] == [{"feature": "search"}]
    assert mine.data[0].prefill_s == 60, "from the minute on"
    assert usage(store, ["hour", "day"], 0).data[0].by == {
        "hour": "1970-01-01T01:00Z",
        "day": "1970-01-01",
    }
    rows = store.requests(10)
    assert [(row["id"], row["cost"], row["account"]) for row in rows] == [
        ("b", 0.0, "failed"),
        ("a", 3.0, "request"),
    ]
    assert (rows[1]["prompt"], rows[1]["cached"], rows[1]["output"], rows[1]["reasoning"]) == (
        *(10, 4, 5, 2),
    )
    store.drop_old_requests(1)
    assert [row["id"] for row in store.requests(10)] == ["b"]
    store.close()
    other.close()


def test_costs_are_of_the_price_of_each_server(url: str) -> None:
    store = LedgerStore(url)
    for number, price in ((1, 3600.0), (2, 7200.0)):
        store.add_life(life(number, price, 6000.0 + number))
        store.write(life(number, price), 1, batch(6060.0, (100, ANN, "decode", 10.0)))
    (line,) = usage(store, ["tenant"], 6000.0).data
    assert line.cost == pytest.approx(30.0) and line.decode_s == 20.0
    store.add_life(life(3, None, 6090.0))
    store.write(life(3, None), 1, batch(6120.0, (101, ANN, "prefill", 5.0)))
    found = usage(store, ["tenant"], 6000.0)
    (line,) = found.data
    assert found.currency_per_device_hour == 7200.0, "one without a price hides nobody's"
    assert (line.cost, line.prefill_cost) == (pytest.approx(30.0), 0.0)
    assert line.decode_cost == pytest.approx(30.0), "not 20 seconds at the price of the latest"
    rows = break_even(found, [Price(name="shop", input=1.0, output=1.0)])
    assert rows[0]["own"] == pytest.approx(30.0)
    store.close()


def test_a_report_is_of_one_moment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server writes between its queries is in none of them."""
    store, writer = LedgerStore(url), LedgerStore(url)
    writer.add_life(life())
    writer.write(life(), 1, batch(6060.0, (100, ANN, "decode", 60.0)))
    sums = LedgerStore._sums

    def and_then_more(self: LedgerStore, *args: Any) -> list[Sum]:
        found = sums(self, *args)
        number = int(writer.covered(0.0)[0]) // 60 + 1
        more = batch(6000.0 + 60 * number, (99 + number, ANN, "decode", 60.0))
        writer.write(life(), number, more)
        return found

    monkeypatch.setattr(LedgerStore, "_sums", and_then_more)
    found = usage(store, ["tenant"], 0.0)
    assert found.accounts is not None
    assert sum(one.device_s for one in found.accounts) == found.covered_s == 60.0
    assert found.data[0].decode_s == 60.0
    monkeypatch.undo()
    assert usage(store, ["tenant"], 0.0).covered_s == 180.0
    store.close()
    writer.close()


def test_servers_that_start_together_make_the_tables_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(LedgerStore, [url] * 6))
    for number, store in enumerate(stores):
        store.add_life(life(number))
        store.close()


def test_lines_beyond_the_bound_are_owned_up_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LedgerStore(url)
    store.add_life(life())
    lines = [(100, Tags(f"t{n}", "k", "", "m"), "decode", 1.0 + n) for n in range(5)]
    store.write(life(), 1, batch(6060.0, *lines))
    found = usage(store, ["tenant"], 0.0, most=3)
    assert found.has_more and [line.by["tenant"] for line in found.data] == ["t4", "t3", "t2"]
    found = usage(store, ["tenant"], 0.0, most=None)
    assert not found.has_more and len(found.data) == 5
    store.close()


def test_budgets_are_kept(url: str) -> None:
    store = LedgerStore(url)
    one = Budget(name="b", scope="feature", value="search", measure="money", amount=5.0)
    store.set_budget(one)
    two = Budget(name="b", scope="all", value="", measure="tokens", amount=9.0, period="day")
    store.set_budget(two)
    assert store.budgets() == [two]
    assert store.remove_budget("b") and not store.remove_budget("b")
    store.close()


def test_the_file_is_its_owners_alone_and_a_bad_url_says_why(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    LedgerStore(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for url, words in [
        ("mysql://a:secret@b/c", "expected sqlite"),
        (f"sqlite:///{tmp_path}", "unable to open"),
        ("postgresql://u:secret@/d?host=/nowhere", "no such"),
        ("sqlite://", "expected sqlite"),
        ("postgresql://[::1/d", "cannot be read"),
        ("postgresql://u:p@ss:secret@/d?host=/nowhere", "cannot be read"),
        ("postgresql:///d?host=/nowhere&password=secret", "no such"),
    ]:
        with pytest.raises(ConfigError) as caught:
            LedgerStore(url)
        assert words in caught.value.message.lower() and "secret" not in str(caught.value), url
    with pytest.raises(ConfigError, match="no such file"):
        LedgerStore(f"sqlite:///{tmp_path}/none", create=False)


def test_times_and_columns() -> None:
    assert moment("2h", 10_000.0) == 2_800.0
    assert moment("1970-01-02", 0) == 86400.0
    for text in ("soon", "5", "-1d", "9999999999999d"):
        with pytest.raises(RequestError):
            moment(text, 0.0)
    assert dimensions("tenant, key") == ["tenant", "key"]
    with pytest.raises(RequestError, match="tenant"):
        dimensions("tenants")


class Failing:
    """A store that cannot write for a while."""

    name = "of the test"

    def __init__(self, store: LedgerStore) -> None:
        self.store = store
        self.is_full = True

    def write(self, *args: object) -> None:
        if self.is_full:
            raise OperationalError("INSERT", {}, Exception("database or disk is full"))
        self.store.write(*args)  # type: ignore[arg-type]  # passed on

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


def test_a_full_disk_is_waited_for_and_then_ends_the_ledger_alone(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        desk = CostDesk("m", Metrics("m"), 3600.0)
        desk.open(url)
        await desk.opened()
        assert desk.store is not None
        failing = Failing(desk.store)
        desk.store = failing  # type: ignore[assignment]  # as one
        for _ in range(3):
            await desk.turn()
        assert "disk is full" in desk.trouble
        assert caplog.text.count("cannot be written") == 1, "told once"
        failing.is_full = False
        await desk.turn()
        await desk.turn()
        assert not desk.trouble
        covered, _ = failing.store.covered(0.0)
        (startup,) = [one for one in failing.store.sums((), 0.0) if one.item == "startup"]
        assert startup.amount == pytest.approx(covered, abs=1e-5), "nothing was lost"
        failing.is_full = True
        monkeypatch.setattr(desks, "MAX_BACKLOG", 0)
        await desk.turn()
        await desk.turn()
        assert desk.store is None and desk.trouble.startswith("ended")
        assert b'database="of the test",engine="0",model_name="m"} 0.0' in desk._metrics.render()
        await desk.turn()
        assert not desk.book.sums, "it fills no memory"
        late = Budget(name="b", scope="all", value="", measure="tokens", amount=9.0, period="day")
        desk.budgets.install([(late, 9.0)])
        desk.budgets.states["b"].ends = 0.0
        await desk.turn()
        assert desk.budgets.states["b"].used == 0.0, "a new day begins all the same"
        assert (
            b'budget_used_ratio{budget="b",engine="0",model_name="m"} 0.0' in desk._metrics.render()
        )
        await desk.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_desk_counts_budgets_from_the_database_and_itself(url: str) -> None:
    async def run() -> None:
        store = LedgerStore(url)
        budget = Budget(name="b", scope="tenant", value="ann", measure="tokens", amount=100.0)
        store.set_budget(budget)
        now = time.time()
        store.add_life(life(9, began=now))
        store.write(life(9), 1, batch(now, (int(now // 60), ANN, "tokens:prompt", 30.0)))
        desk = CostDesk("m", Metrics("m"), None)
        desk.open(url)
        await desk.opened()
        entry = desk.book.open("r", ANN, 20)
        await desk.turn()
        desk.book.add_output(entry, 5)
        assert desk.budgets.states["b"].used == 55.0
        store.remove_budget("b")
        desk._looked_at = 0.0
        await desk.turn()
        assert not desk.budgets.states
        await desk.close()
        store.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_a_feature_of_one_tenant_has_used(url: str) -> None:
    """Another tenant that names the feature, and the tenant's other calls, are not in it."""
    store = LedgerStore(url)
    store.add_life(life())
    bobs = BOB._replace(feature="search")
    plain = ANN._replace(feature="")
    lines = [
        (100, tags, "prefill", amount)
        for tags, amount in ((ANN, 1.0), (bobs, 20.0), (plain, 300.0))
    ]
    store.write(life(), 1, batch(6060.0, *lines))
    found = {}
    for scope, value in (
        ("tenant+feature", "ann search"),
        ("key+feature", "key_2 search"),
        ("feature", "search"),
        ("tenant", "ann"),
        ("all", ""),
    ):
        one = Budget(name="b", scope=scope, value=value, measure="device_hours", amount=1.0)  # type: ignore[arg-type]  # a scope
        store.set_budget(one)
        assert store.budgets() == [one]
        found[scope] = sum(line.amount for line in store.used(one, 6100.0))
    assert found == {
        "tenant+feature": 1.0,
        "key+feature": 20.0,
        "feature": 21.0,
        "tenant": 301.0,
        "all": 321.0,
    }
    store.close()
