"""The hand-over of a listening socket, step by step."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from octavo.core.errors import ConfigError
from octavo.server.listen import handover
from octavo.server.listen.handover import Offer, Takeover


@pytest.fixture(autouse=True)
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover.tempfile, "gettempdir", lambda: str(tmp_path))


@asynccontextmanager
async def offering(seen: list[str]) -> AsyncIterator[socket.socket]:
    """A server that notes what is asked of it."""

    async def leave() -> None:
        seen.append("leave")

    async def stay() -> None:
        seen.append("stay")

    async def left() -> None:
        seen.append("left")

    with socket.create_server(("127.0.0.1", 0)) as sock:
        offer = Offer(
            handover.offer_path("127.0.0.1", sock.getsockname()[1]), sock.dup(), leave, stay, left
        )
        try:
            yield sock
        finally:
            await offer.close()


async def ask(port: int) -> Takeover:
    found = await asyncio.to_thread(Takeover.ask, "127.0.0.1", port)
    assert found is not None
    return found


def test_the_successor_gets_the_same_socket_and_the_server_leaves_once_it_serves() -> None:
    async def run() -> None:
        seen: list[str] = []
        async with offering(seen) as sock:
            port = sock.getsockname()[1]
            takeover = await ask(port)
            assert takeover.sock.getsockname() == sock.getsockname()
            assert seen == [], "nothing changes while the successor loads"
            await takeover.arrive()
            assert seen == ["leave"]
            assert Takeover.ask("127.0.0.1", port) is None, "the successor offers it from now on"
            await takeover.confirm()
            while seen != ["leave", "left"]:
                await asyncio.sleep(0)
            takeover.sock.close()
            takeover.close()

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("said", [b"", b"ready\n", b"nonsense\n"])
def test_a_successor_that_goes_away_leaves_the_server_in_its_place(said: bytes) -> None:
    async def run() -> None:
        seen: list[str] = []
        async with offering(seen) as sock:
            port = sock.getsockname()[1]
            failing = await ask(port)
            failing.sock.close()
            failing._connection.sendall(said)
            failing._connection.close()
            expected = ["leave", "stay"] if said == b"ready\n" else []
            while seen != expected:
                await asyncio.sleep(0)
            takeover = await ask(port)
            assert seen == expected
            await takeover.arrive()
            await takeover.confirm()
            while seen[-1] != "left":
                await asyncio.sleep(0)
            takeover.sock.close()
            takeover.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_answers_in_another_tongue_is_refused() -> None:
    path = handover.offer_path("127.0.0.1", 1)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        async def run() -> None:
            asking = asyncio.create_task(asyncio.to_thread(Takeover.ask, "127.0.0.1", 1))
            connection, _ = await asyncio.to_thread(listener.accept)
            connection.sendall(b"octavo handover 2\n")
            connection.close()
            with pytest.raises(ConfigError, match="another version"):
                await asking

        asyncio.run(asyncio.wait_for(run(), 20))


def test_a_server_that_hangs_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_ASK_S", 0.05)
    path = handover.offer_path("127.0.0.1", 1)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)  # connections are made, and nobody accepts them
        with pytest.raises(ConfigError, match="has not answered") as caught:
            Takeover.ask("127.0.0.1", 1)
    assert caught.value.code == "E-NET-05"


def test_nobody_to_ask() -> None:
    assert Takeover.ask("127.0.0.1", 1) is None


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    async def run() -> None:
        handover.offer_path("127.0.0.1", 1).parent.mkdir(mode=0o777)
        handover.offer_path("127.0.0.1", 1).parent.chmod(0o777)
        with pytest.raises(PermissionError, match="not this user's alone"):
            async with offering([]):
                pass

    asyncio.run(run())
