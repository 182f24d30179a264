"""Compiling off the loop: one process for many, a cache bounded in bytes, and an end to what takes too long."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

import msgspec
import pytest

from grammar_corpus import vocabulary
from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Vocabulary
from octavo.decoding.grammar.compiler import GrammarCompiler
from octavo.decoding.grammar.lru import BytesLRU
from octavo.decoding.grammar.registry import DEFAULT
from octavo.decoding.grammar.worker import CompileLimits, WorkerProcess

MANY = "{" + ",".join(f'"p{i}":{{}}' for i in range(3000)) + "}"
SLOW = StructuredOutputs(json=f'{{"type":"object","properties":{MANY}}}')


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(vocabulary)
    yield made
    made.close()


def test_the_same_is_compiled_once_and_a_refusal_is_kept_too(compiler: GrammarCompiler) -> None:
    asked: list[StructuredOutputs] = []

    async def run() -> None:
        wanted = [StructuredOutputs(choice=("a", "b"))] * 5 + [StructuredOutputs(regex="[")] * 5
        found = await asyncio.gather(*map(compiler.compile, wanted), return_exceptions=True)
        assert len(set(map(str, found))) == 2 and isinstance(found[0], str)
        assert all(isinstance(each, RequestError) for each in found[5:])
        # From here on no process is needed: it could not even be asked.
        compiler._run = asked.append  # type: ignore[assignment, method-assign]
        assert await compiler.compile(wanted[0]) == found[0]
        with pytest.raises(RequestError, match="regex"):
            await compiler.compile(wanted[-1])

    asyncio.run(run())
    assert not asked


def test_what_takes_too_long_is_stopped_and_the_next_compiles() -> None:
    compiler = GrammarCompiler(vocabulary, limits=CompileLimits(timeout_s=0.3))

    async def run() -> None:
        with pytest.raises(RequestError, match=r"takes longer than 0\.3 s") as caught:
            await compiler.compile(SLOW)
        assert caught.value.code == "grammar_limit"
        assert await compiler.compile(StructuredOutputs(regex="a+"))

    asyncio.run(run())
    compiler.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux counts it")
def test_what_takes_too_much_memory_is_refused() -> None:
    # Out of memory, the library may crash or wait for itself for ever; either way the process is killed.
    limits = CompileLimits(timeout_s=2.0, memory_bytes=4 << 20)
    process = WorkerProcess(vocabulary(), limits, DEFAULT)
    large = StructuredOutputs(choice=tuple(f"{number:060d}" for number in range(4000)))
    outcome = process.compile(msgspec.msgpack.encode(large))
    assert outcome.error is not None and outcome.error.code == "grammar_limit"
    process.close()
    roomy = WorkerProcess(vocabulary(), CompileLimits(timeout_s=30.0), DEFAULT)
    assert roomy.compile(msgspec.msgpack.encode(large)).error is None
    roomy.close()


def test_a_process_that_is_gone_is_replaced_and_close_leaves_none(
    compiler: GrammarCompiler,
) -> None:
    async def run() -> None:
        await compiler.compile(StructuredOutputs(regex="a"))
        [process] = compiler._idle
        process.close()
        await compiler.compile(StructuredOutputs(regex="b"))

    asyncio.run(run())
    [process] = compiler._idle
    pid = process._popen.pid
    os.kill(pid, 0)
    compiler.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_tokenizer_that_the_backend_cannot_read_is_a_refusal() -> None:
    broken = Vocabulary(tokenizer_json="{}", eos_token_ids=(0,), vocab_size=4)
    compiler = GrammarCompiler(lambda: broken)
    with pytest.raises(RequestError, match="tokenizer"):
        asyncio.run(compiler.compile(StructuredOutputs(regex="a")))
    compiler.close()


def test_a_million_distinct_entries_leave_the_cache_within_its_bytes() -> None:
    cache: BytesLRU[int, str] = BytesLRU(1000)
    for number in range(1_000_000):
        cache.put(number, "x", 100)
    assert len(cache) == 10 and cache.num_bytes == 1000
    assert cache.get(999_990) == "x"
    cache.put(1_000_000, "y", 500)
    assert cache.get(999_990) == "x" and cache.get(999_991) is None
    cache.put(7, "too large", 1001)
    assert cache.get(7) is None and cache.num_bytes <= 1000
