"""The engine process from outside: streams, cancellation, death, refusal to start, idleness."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_engine import request, write_tiny
from octavo.core.config import BUNDLED_MODEL, EngineConfig
from octavo.core.errors import ConfigError, EngineDeadError, MemoryPlanError, ModelError
from octavo.core.result import Failed, Finished, TokenOut
from octavo.engine.child import EngineProcess
from octavo.engine.client import EngineClient
from octavo.kernels.cpu import native

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def config(folder: Path, **options: object) -> EngineConfig:
    base = {
        "load_format": "dummy",
        "kv_cache_memory_bytes": 1 << 20,
        "max_num_seqs": 8,
        "threads": 1,
    }
    return EngineConfig(model=str(folder), **(base | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineClient]:
    async with EngineClient(config(write_tiny(tmp_path_factory.mktemp("tiny")))) as started:
        await started.wait_ready()
        yield started


async def collect(
    client: EngineClient, name: str, length: int = 5, **options: object
) -> tuple[list[int], object]:
    tokens: list[int] = []
    async for event in client.generate(request(name, range(length), **options)):
        if isinstance(event, TokenOut):
            tokens.extend(event.token_ids)
        else:
            return tokens, event
    raise AssertionError("the stream ended without an end")


async def test_streams_end_in_exactly_one_end(client: EngineClient) -> None:
    results = await asyncio.gather(*(collect(client, f"a{i}", max_tokens=20) for i in range(12)))
    for tokens, end in results:
        assert isinstance(end, Finished) and end.num_output == len(tokens) == 20
        assert end.timing.first_token is not None and end.timing.arrived <= end.timing.first_token
    assert len({tuple(tokens) for tokens, _ in results}) == 1


async def test_start_up_phases_sum_to_the_whole(client: EngineClient) -> None:
    names = [phase.name for phase in client.ready.phases]
    assert names == ["process", "imports", "config", "weights", "kv cache"]
    assert all(phase.seconds >= 0 for phase in client.ready.phases)


async def test_closing_a_stream_frees_its_blocks(client: EngineClient) -> None:
    for round_number in range(20):
        events = client.generate(request(f"c{round_number}", range(50), max_tokens=400))
        for _ in range(round_number % 4):
            await anext(events)
        await events.aclose()
    await collect(client, "after")
    assert client.stats.num_running == 0 and client.stats.num_waiting == 0
    assert client.stats.num_free_blocks == client.stats.num_blocks


async def test_the_socket_is_private(client: EngineClient) -> None:
    process = client._supervisor.process
    assert isinstance(process, EngineProcess)
    path = Path(process.folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    sockets = [item for item in path.iterdir() if item.is_socket()]
    assert all(stat.S_IMODE(item.stat().st_mode) == 0o600 for item in sockets)
    for item in sockets:  # it no longer listens: nobody else can join
        with pytest.raises(OSError):
            await asyncio.open_unix_connection(str(item))


async def test_an_idle_engine_uses_under_one_percent_of_a_core(client: EngineClient) -> None:
    assert client.pid is not None
    await collect(client, "warm", max_tokens=30)
    time.sleep(0.5)  # let worker threads of the last step settle; what follows is a measurement
    before, begun = cpu_seconds(client.pid), time.monotonic()
    time.sleep(3.0)
    used = (cpu_seconds(client.pid) - before) / (time.monotonic() - begun)
    assert used < 0.01, f"{used:.2%} of a core while idle"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_killed_engine_fails_its_streams_with_the_cause(tmp_path: Path) -> None:
    async with EngineClient(config(write_tiny(tmp_path), max_engine_restarts=0)) as client:
        await client.wait_ready()
        running = asyncio.create_task(collect(client, "x", max_tokens=500))
        while client.stats.num_running == 0:
            await asyncio.sleep(0)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        _, end = await running
        assert isinstance(end, Failed) and end.error.status == 503 and "-9" in end.error.message
        assert client.status().state == "dead" and "-9" in client.status().reason
        with pytest.raises(EngineDeadError, match="-9") as caught:
            await collect(client, "y")
        assert caught.value.status == 503 and caught.value.code == "engine_unavailable"


async def test_a_long_temporary_folder_leaves_the_socket_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with EngineClient(config(write_tiny(tmp_path))) as client:
        await client.wait_ready()
        process = client._supervisor.process
        assert isinstance(process, EngineProcess)
        folder = Path(process.folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    with pytest.raises(EngineDeadError, match=r"^the engine is dead\.$"):
        _ = client.ready


@pytest.mark.parametrize(
    ("changes", "options", "error", "code"),
    [
        ({}, {"max_model_len": 100_000}, ConfigError, "E-CFG-05"),
        ({}, {"kv_cache_memory_bytes": 1 << 50}, MemoryPlanError, "E-MEM-03"),
        ({}, {"max_num_batched_tokens": 9}, ConfigError, "E-CFG-03"),
        ({}, {"device": "cuda"}, ConfigError, "E-GPU-01"),
        ({}, {"scheduling_policy": "fcsf"}, ConfigError, "E-REG-01"),
        ({}, {"step_log": "/dev/null/steps"}, ConfigError, "E-CFG-07"),
        ({"architectures": ["Qwen9ForCausalLM"]}, {}, ModelError, None),
    ],
)
async def test_what_cannot_start_says_why(
    tmp_path: Path, changes: dict, options: dict, error: type[Exception], code: str | None
) -> None:
    async with EngineClient(config(write_tiny(tmp_path, **changes), **options)) as client:
        with pytest.raises(error) as caught:
            await client.wait_ready()
        assert client.status().state == "dead"
        assert code is None or getattr(caught.value, "code", "") == code
        with pytest.raises((error, EngineDeadError)):
            _ = client.ready


async def test_told_to_stop_while_loading_is_no_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = EngineClient(config(write_tiny(tmp_path)))
    await client.start()
    await client.close()
    assert client.fatal is None, "asked to stop, it stopped"
    assert "E-ENGINE-02" not in caplog.text


def test_a_launched_engine_can_be_abandoned(tmp_path: Path) -> None:
    """As when the port is taken: no process and no folder are left."""
    client = EngineClient(config(write_tiny(tmp_path)))
    client.launch()
    process = client._supervisor.process
    assert isinstance(process, EngineProcess) and client.pid is not None
    folder = Path(process.folder)
    assert folder.is_dir()
    client.abandon()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


@pytest.mark.skipif(
    native.missing() is not None or native.isa() == "scalar", reason="nothing is packed here"
)
async def test_weights_are_packed_while_libraries_are_loaded() -> None:
    """At the first start and after a kill; with what is loaded so, tokens are the same."""
    asked = config(Path(BUNDLED_MODEL), load_format="auto", device="cpu", threads=2)
    async with EngineClient(asked) as client:
        ready = await client.wait_ready()
        (weights,) = (phase for phase in ready.phases if phase.name == "weights")
        assert weights.detail.endswith("packed during the imports")
        before, _ = await collect(client, "before", max_tokens=8)
        os.kill(ready.pid, signal.SIGKILL)
        after, end = await collect(client, "after", max_tokens=8)
        assert isinstance(end, Finished) and after == before
