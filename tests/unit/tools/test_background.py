import asyncio
import contextlib
import os
import signal

import pytest

from octavo.tools.background import LoopThread


async def interrupted(log: list[str]) -> None:
    """Sends Ctrl-C to the main thread, then waits for ever, and takes a while to clean up."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        log.append("cleaned up")


@contextlib.asynccontextmanager
async def context(log: list[str]):
    log.append("entered")
    try:
        async with asyncio.TaskGroup():  # must be left by the task that entered it
            yield "value"
    finally:
        log.append("left")


def test_run():
    async def fail():
        raise ValueError("no")

    with LoopThread() as loop:
        assert loop.run(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ValueError, match="no"):
            loop.run(fail())


def test_interrupt_ends_the_work_and_not_the_loop():
    log: list[str] = []
    with LoopThread() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.run(interrupted(log))
        assert log == ["cleaned up"]
        assert loop.run(asyncio.sleep(0, "still here")) == "still here"


def test_hold():
    log: list[str] = []
    with LoopThread() as loop:
        with loop.hold(context(log)) as value:
            assert value == "value"
            assert log == ["entered"]
        assert log == ["entered", "left"]
        with pytest.raises(RuntimeError, match="body"), loop.hold(context(log)):
            raise RuntimeError("body")
        assert log == ["entered", "left"] * 2


def test_hold_that_cannot_enter():
    @contextlib.asynccontextmanager
    async def broken():
        raise ValueError("cannot")
        yield

    with LoopThread() as loop, pytest.raises(ValueError, match="cannot"), loop.hold(broken()):
        pytest.fail("entered")


def test_interrupt_while_entering():
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def slow():
        await interrupted(log)
        yield

    with LoopThread() as loop:
        with pytest.raises(KeyboardInterrupt), loop.hold(slow()):
            pytest.fail("entered")
        assert log == ["cleaned up"]
