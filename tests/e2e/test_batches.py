"""Files and batch jobs through the official client: results, tenants, cancelling, expiry, and a kill in the middle."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from fakes import FakeEngine, InProcess, ServerThread, make_state, running
from octavo.core.errors import ConfigError
from octavo.server import batch_job
from octavo.server import batches as runner
from octavo.server.auth import KeyRing
from octavo.server.jobs import lines
from octavo.server.jobs.shapes import OPEN, Batch, File
from octavo.server.jobs.store import Store, new_id
from octavo.server.keys import watch
from octavo.server.keys.rows import Limits
from octavo.server.keys.store import KeyStore
from security.keyed import make_key

CHATS = "/v1/chat/completions"
HERE = Path(__file__).parent


class WatchedStore(Store):
    """Tells when a job has ended, and how many answers were kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.over = threading.Semaphore(0)
        self.kept = threading.Semaphore(0)

    def update(self, batch: Batch) -> None:
        super().update(batch)
        if batch.status == "failed":
            self.over.release()

    def finish(self, *args: Any) -> None:
        super().finish(*args)
        self.over.release()

    def save_answer(self, *args: Any, **options: Any) -> None:
        super().save_answer(*args, **options)
        self.kept.release()


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return WatchedStore(tmp_path / "state")


def line(custom_id: str, url: str = CHATS, **body: Any) -> dict[str, Any]:
    full = {"messages": [{"role": "user", "content": custom_id}], "max_tokens": 3, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": full}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def client_of(server: ServerThread, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def server(store: WatchedStore) -> Iterator[ServerThread]:
    with running(FakeEngine(), keys=("one", "two"), store=store) as made:
        yield made


def submit(
    client: openai.OpenAI, content: bytes, window: Any = "24h", endpoint: Any = CHATS
) -> Any:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window=window, metadata={"a": "b"}
    )


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def test_a_batch_through_the_official_client(server: ServerThread, store: WatchedStore) -> None:
    with client_of(server, "one") as client:
        bad = line("bad", temperature=-1)
        rows = [*[line(f"r{i}", seed=i) for i in range(30)], bad]
        batch = submit(client, jsonl(*rows[:10]) + b"\n" + jsonl(*rows[10:]))
        assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"a": "b"})
        assert store.over.acquire(timeout=20)
        done = client.batches.retrieve(batch.id)
        assert done.status == "completed" and done.completed_at is not None
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 31, "completed": 30, "failed": 1}
        out = read(client, done.output_file_id)
        assert [one["custom_id"] for one in out] == [f"r{i}" for i in range(30)]
        direct = client.chat.completions.create(
            model="fake-model", messages=rows[7]["body"]["messages"], max_tokens=3, seed=7
        )
        body = out[7]["response"]["body"]
        assert out[7]["response"]["status_code"] == 200 and out[7]["error"] is None
        assert body["choices"][0]["message"]["content"] == direct.choices[0].message.content
        (wrong,) = read(client, done.error_file_id)
        assert wrong["custom_id"] == "bad" and wrong["response"]["status_code"] == 400
        assert wrong["response"]["body"]["error"]["param"] == "temperature"
        listed = client.batches.list().data
        assert [one.id for one in listed] == [batch.id]
        output = client.files.retrieve(done.output_file_id or "")
        assert (output.purpose, output.bytes) == (
            "batch_output",
            len(client.files.content(output.id).content),
        )
        priorities = {request.priority for request in server.state.engine.submitted[:-1]}  # type: ignore[attr-defined]
        assert batch_job.PRIORITY in priorities, "jobs run after everyone else"


def test_no_key_sees_anothers_files_or_jobs(server: ServerThread, store: WatchedStore) -> None:
    with client_of(server, "one") as one, client_of(server, "two") as two:
        batch = submit(one, jsonl(line("a")))
        assert store.over.acquire(timeout=20)
        batch = one.batches.retrieve(batch.id)
        for file_id in (batch.input_file_id, batch.output_file_id or ""):
            for attempt in (two.files.retrieve, two.files.content, two.files.delete):
                with pytest.raises(openai.NotFoundError):
                    attempt(file_id)
        for look in (two.batches.retrieve, two.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                look(batch.id)
        with pytest.raises(openai.NotFoundError):
            two.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHATS, completion_window="24h"
            )
        assert two.files.list().data == [] and two.batches.list().data == []
        assert one.files.delete(batch.input_file_id).deleted
        assert [file.id for file in one.files.list()] == [batch.output_file_id]


def test_cancelling_keeps_what_is_answered(store: WatchedStore) -> None:
    engine = FakeEngine()
    with running(engine, store=store) as server, client_of(server, "x") as client:
        batch = submit(client, jsonl(*[line(f"r{i}") for i in range(100)]))
        assert store.kept.acquire(timeout=20)
        engine.pause_after = 0
        assert engine.paused.acquire(timeout=20)
        assert client.batches.cancel(batch.id).status == "cancelling"
        assert store.over.acquire(timeout=20)
        ended = client.batches.retrieve(batch.id)
        assert ended.status == "cancelled" and ended.cancelled_at is not None
        answered = read(client, ended.output_file_id)
        assert 0 < len(answered) < 100
        assert ended.request_counts is not None and ended.request_counts.completed == len(answered)
        assert client.batches.cancel(batch.id).status == "cancelled", "again changes nothing"
        assert not server.state.num_in_flight
        engine.pause_after = None
        again = submit(client, jsonl(*[line(f"r{i}") for i in range(2 * runner.WINDOW)]))
        assert store.over.acquire(timeout=20), "every place in the window is free again"
        assert client.batches.retrieve(again.id).status == "completed"


def test_expiry_answers_the_rest_with_an_error(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(FakeEngine(), store=store) as server, client_of(server, "x") as client:
        ahead = time.time() + 3600
        monkeypatch.setattr(batch_job, "now_s", lambda: int(ahead))
        batch = submit(client, jsonl(line("a"), line("b")), window="10m")
        assert store.over.acquire(timeout=20)
        ended = client.batches.retrieve(batch.id)
        assert (ended.status, ended.output_file_id) == ("expired", None)
        late = read(client, ended.error_file_id)
        assert [(one["custom_id"], one["error"]["code"]) for one in late] == [
            ("a", "batch_expired"),
            ("b", "batch_expired"),
        ]


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"{\n", "invalid_json_line", 1),
        (jsonl(line("a"), {"custom_id": "b"}), "invalid_json_line", 2),
        (jsonl(line("a"), line("a")), "duplicate_custom_id", 2),
        (jsonl(line("a", url="/v1/completions")), "mismatched_endpoint", 1),
        (jsonl(line("a", stream=True)), "stream_in_batch", 1),
        (jsonl({**line("a"), "body": []}), "invalid_body", 1),
        (b'{"x":"' + b"y" * lines.MAX_LINE_BYTES + b'"}\n', "line_too_long", 1),
        (b"[" * 100_000 + b"\n", "invalid_json_line", 1),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(
    tmp_path: Path, content: bytes, code: str, number: int | None
) -> None:
    path = tmp_path / "in"
    path.write_bytes(content)
    _, errors = lines.check(path, (CHATS,))
    assert (errors[0].code, errors[0].line) == (code, number)


def test_a_bad_file_fails_its_batch(server: ServerThread, store: WatchedStore) -> None:
    with client_of(server, "one") as client:
        batch = submit(client, b"{}\n" * 3)
        assert store.over.acquire(timeout=20)
        ended = client.batches.retrieve(batch.id)
        assert ended.status == "failed" and ended.errors is not None
        assert [one.line for one in ended.errors.data or []] == [1, 2, 3]
        with pytest.raises(openai.BadRequestError, match="endpoint"):
            submit(client, b"", endpoint="/v1/nowhere")
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.create(file=io.BytesIO(b"x"), purpose="assistants")


def test_too_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    path = tmp_path / "in"
    path.write_bytes(jsonl(*[line(str(i)) for i in range(5)]))
    assert [error.code for error in lines.check(path, (CHATS,))[1]] == ["too_many_lines"]


def test_lines_wait_while_others_queue(store: WatchedStore) -> None:
    engine = FakeEngine()
    engine._count(num_waiting=1)
    with running(engine, store=store) as server, client_of(server, "x") as client:
        submit(client, jsonl(line("a")))
        client.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "now"}], max_tokens=1
        )
        assert len(engine.submitted) == 1, "the caller's, not the job's"
        server.on_loop(lambda: engine._count(num_waiting=-1))
        assert store.over.acquire(timeout=20)
    assert len(engine.submitted) == 2


@contextmanager
def keyed(
    store: WatchedStore, engine: FakeEngine, path: Path, limits: Limits
) -> Iterator[tuple[ServerThread, str]]:
    """A server and its one stored key."""
    with KeyStore(path, create=True) as keys:
        key = make_key(keys, "alice", tenant="one", limits=limits)
    state = make_state(engine, store=store)
    state.keys = KeyRing((), path)
    with ServerThread(state) as server:
        yield server, key


def test_a_line_is_one_request_of_its_key_however_often_it_is_asked(
    store: WatchedStore, tmp_path: Path
) -> None:
    """Lines that wait for one another leave a key its requests per minute."""
    limits = Limits(requests_per_minute=20, max_concurrency=1)
    engine = FakeEngine()
    engine.pause_after = 1
    with (
        keyed(store, engine, tmp_path / "keys", limits) as (server, key),
        client_of(server, key) as client,
    ):
        submit(client, jsonl(*[line(str(i)) for i in range(4)]))
        assert engine.paused.acquire(timeout=10)
        refusals = server.state.metrics.render
        deadline = time.monotonic() + 10
        while b'reason="key_concurrency"} 6.0' not in refusals():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        engine.pause_after = None
        server.on_loop(engine.release.set)
        assert store.over.acquire(timeout=20)
        answer = client.chat.completions.with_raw_response.create(
            model="fake-model", messages=[{"role": "user", "content": "now"}], max_tokens=1
        )
        # A file, a job, four lines and this.
        assert int(answer.headers["x-ratelimit-remaining-requests"]) >= 20 - 7


def test_a_job_stops_with_its_tenants_last_key(
    store: WatchedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_job, "_LOOK_S", 0.0)
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    engine = FakeEngine()
    engine.pause_after = 1
    path = tmp_path / "keys"
    with keyed(store, engine, path, Limits()) as (server, key), client_of(server, key) as client:
        job = submit(client, jsonl(*[line(str(i)) for i in range(40)]))
        assert engine.paused.acquire(timeout=10)
        with KeyStore(path) as keys:
            keys.revoke(keys.find("alice").id, 1)
        deadline = time.monotonic() + 10
        while engine.aborts:
            assert time.monotonic() < deadline, "what runs for a revoked key is cut off"
            time.sleep(0.02)
        assert len(engine.submitted) <= runner.WINDOW
        assert store.batch("one", job.id).status == "in_progress", "a new key would go on with it"


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    first = Store(tmp_path)
    with pytest.raises(ConfigError, match="in use"):
        Store(tmp_path)
    first.close()
    Store(tmp_path).close()


def test_without_a_folder_the_endpoints_say_what_to_do() -> None:
    answer = InProcess(make_state()).call("GET", "/v1/files")
    assert answer.status_code == 400 and "--state-dir" in answer.text


def test_limits_of_files_and_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.server.jobs import store as module
    from octavo.server.openai import files

    monkeypatch.setattr(module, "MAX_FILES", 1)
    monkeypatch.setattr(module, "MAX_OPEN_BATCHES", 0)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100_000)
    store = Store(tmp_path)
    calls = InProcess(make_state(store=store))

    def upload(content: bytes, **data: str) -> Any:
        fields = {"purpose": "batch", **data}
        return calls.call("POST", "/v1/files", files={"file": ("../a", content)}, data=fields)

    assert upload(b"x" * 400_000).status_code == 413
    assert upload(b"x", colour="red").json()["error"]["param"] == "colour"
    bad = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}
    assert upload(b"x", **bad).json()["error"]["param"] == "expires_after.seconds"
    kept = upload(b"x").json()
    assert kept["filename"] == "a", "no path of the caller's"
    assert upload(b"y").status_code == 429
    body = {"input_file_id": kept["id"], "endpoint": CHATS, "completion_window": "24h"}
    assert calls.post("/v1/batches", body).status_code == 429
    for query in ("limit=0", "limit=x", "order=up", "colour=red", "limit=1&limit=2"):
        answer = calls.call("GET", f"/v1/files?{query}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == query.split("=")[0]
    assert calls.call("GET", "/v1/files?after=nothing").status_code == 404
    assert calls.call("POST", "/v1/files", content=b"x").status_code == 415
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert calls.call("POST", "/v1/files", content=b"junk", headers=form).status_code == 400
    store.close()


def test_a_kill_in_the_middle_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """The server is killed twice while lines are under way; what was answered before is never asked again."""
    num_lines = 60
    store = Store(tmp_path)
    content = io.BytesIO(jsonl(*[line(f"r{i}") for i in range(num_lines)]))
    file = File(id=new_id("file-"), bytes=0, created_at=0, filename="in", purpose="batch")
    store.add_file("", file, content)
    now = int(time.time())
    batch = Batch(
        id=new_id("batch_"), endpoint=CHATS, input_file_id=file.id, completion_window="24h",
        created_at=now, expires_at=now + 3600,
    )  # fmt: skip
    store.add_batch("", batch)
    store.close()
    before: dict[int, bytes] = {}
    for count in (25, 20, 0):
        run = subprocess.run(
            [sys.executable, str(HERE / "batch_victim.py"), str(tmp_path), str(count)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parent)},
            check=False,
        )
        assert run.returncode == (-9 if count else 0)
        store = Store(tmp_path)
        if count:
            assert store.batch("", batch.id).status == "in_progress"
            kept = {index: next(iter(store._rows(
                "SELECT doc FROM answers WHERE batch=? AND line=?", batch.id, index)))[0]
                for index in store.answered(batch.id)}  # fmt: skip
            assert len(before) < len(kept) < num_lines
            assert before.items() <= kept.items()
            before = kept
            store.close()
    ended = store.batch("", batch.id)
    assert (ended.status, ended.request_counts.completed) == ("completed", num_lines)
    rows = store.path(ended.output_file_id or "").read_bytes().splitlines()
    assert [json.loads(row)["custom_id"] for row in rows] == [f"r{i}" for i in range(num_lines)]
    assert all(rows[index] == doc for index, doc in before.items()), (
        "the answers from before the kills"
    )
    assert not store.answered(batch.id) and not [
        one for one in store.open_batches() if one[1].status in OPEN
    ]
    store.close()
