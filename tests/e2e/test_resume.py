"""Cut anywhere, a request goes on as if nothing had been: every kind of it, at every event, in an engine of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fakes import EOS, VOCAB_SIZE, byte_tokenizer
from grammar_corpus import vocabulary
from local_engine import LocalEngine, request, write_tiny
from octavo.core.request import Request
from octavo.core.result import Event, Finished, TokenOut
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.llguidance import Backend
from octavo.engine.ipc import UseVocabulary
from octavo.engine.streams import Stream

PROMPT = list(b"answer the question: what is an octavo? ")
WANTED = StructuredOutputs(json='{"type": "object", "properties": {"name": {"enum": ["abc", "b"]},'
    ' "count": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["name", "count"],'
    ' "additionalProperties": false}', disable_any_whitespace=True)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB_SIZE)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return folder


def kinds() -> list[Request]:
    sampled: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 20}
    grammar = Backend(vocabulary()).compile(WANTED)
    plain = {"greedy": {"max_tokens": 20}, "seeded": sampled}
    other = {
        "second choice": sampled | {"index": 1, "n": 2},
        "narrow": sampled | {"top_p": 0.7, "top_k": 30, "min_p": 0.01},
        "logprobs": sampled | {"logprobs": 3},
        "prompt logprobs": sampled | {"prompt_logprobs": 2, "logprobs": 0},
        "penalties": sampled | {"presence_penalty": 1.5, "frequency_penalty": 1.0},
        "repetition": sampled | {"repetition_penalty": 1.7},
        "bias": sampled | {"logit_bias": {7: 9.0, 8: 8.0}},
        "min tokens": sampled | {"min_tokens": 9, "stop_token_ids": tuple(range(0, 250, 2))},
        "stop token": sampled | {"stop_token_ids": tuple(range(0, 250, 9))},
    }
    asked = [request(name, PROMPT, **dict(options)) for name, options in (plain | other).items()]
    ends = {"eos_token_ids": (EOS,), "temperature": 1.0, "max_tokens": 60}
    for seed, more in enumerate(({}, {"logprobs": 1}, {"max_tokens": 9})):
        one = request(f"grammar {more}", PROMPT, **(ends | {"seed": seed} | more))
        asked.append(replace(one, grammar=grammar))
    return asked


def run(tiny: Path, *asked: Request, **options: Any) -> LocalEngine:
    engine = LocalEngine(tiny, **options)
    engine.link.inbox.append(UseVocabulary(vocabulary()))
    engine.submit(*asked)
    while engine.link.inbox or engine.engine.grammars.is_busy or engine.engine.scheduler.has_work:
        engine.step()
    return engine


def events_of(engine: LocalEngine, name: str) -> list[Event]:
    return [*engine.outs.get(name, []), engine.ends[name]]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path) -> dict[str, list[Event]]:
    engine = run(tiny, *kinds())
    found = {one.id: events_of(engine, one.id) for one in kinds()}
    assert all(isinstance(events[-1], Finished) for events in found.values())
    assert any(len(event.token_ids) > 3 for event in found["grammar {}"][:-1]), "it jumps"  # type: ignore[union-attr]
    return found


def timeless(events: list[Event]) -> list[bytes]:
    """What is the same in every run, as bytes: all but times, and what the prefix cache held."""
    plain = []
    for event in events:
        if isinstance(event, Finished):
            assert event.timing.first_token is not None and event.timing.admitted is not None
            event = replace(event, timing=None, num_cached=0)  # type: ignore[arg-type]
        elif isinstance(event, TokenOut):
            is_first = event.admitted is not None  # said once, whatever became of engines
            event = replace(event, num_cached=0, admitted=0.0 if is_first else None)
        plain.append(msgspec.msgpack.encode(event))
    return plain


def cuts(undisturbed: dict[str, list[Event]]) -> Iterator[list[tuple[Stream, list[Event]]]]:
    """For each number of events: the requests that have had so many and no end, and those events."""
    for count in range(max(map(len, undisturbed.values()))):
        open_ones = []
        for one in kinds():
            events = undisturbed[one.id][:count]
            if count >= len(undisturbed[one.id]):
                continue
            stream = Stream(one, 0)
            stream.run(1.0)
            for event in events:
                stream.take(event, 2.0)
            stream.restarts = 1
            open_ones.append((stream, events))
        if open_ones:
            yield open_ones


@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 21, "max_num_seqs": 5, "kv_cache_memory_bytes": 256 * 16 * 40}],
    ids=["roomy", "crowded and chunked"],
)
def test_every_kind_cut_after_every_event(
    tiny: Path, undisturbed: dict[str, list[Event]], options: dict
) -> None:
    for open_ones in cuts(undisturbed):
        engine = run(tiny, *(stream.submission() for stream, _ in open_ones), **options)
        for stream, _ in open_ones:
            name = stream.request.id
            for event in events_of(engine, name):
                stream.take(event, 3.0)
            told = [stream.queue.get_nowait() for _ in range(stream.queue.qsize())]
            assert timeless(told) == timeless(undisturbed[name]), name


def test_cut_twice_and_finished_by_the_cut(tiny: Path, undisturbed: dict[str, list[Event]]) -> None:
    """A grammar that is complete, or any output whose last token its caller has, ends without another one."""
    for one in kinds():
        *outs, end = undisturbed[one.id]
        tokens = [token for out in outs for token in out.token_ids]  # type: ignore[union-attr]
        engine = run(tiny, replace(one, resumed=tuple(tokens), restarts=2))
        found = engine.ends[one.id]
        assert isinstance(found, Finished) and isinstance(end, Finished)
        assert (found.reason, found.stop_token) == (end.reason, end.stop_token)
        assert found.num_output == end.num_output
        assert not engine.tokens.get(one.id), "nothing was said twice"
