"""Structured output through the real engine: valid whatever happens around a request, and never at others' expense."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

from fakes import EOS, VOCAB_SIZE, byte_tokenizer
from grammar_corpus import vocabulary
from local_engine import LocalEngine, request, write_tiny
from octavo import LLM, SamplingParams
from octavo.core.errors import RequestError
from octavo.core.request import Request
from octavo.core.result import Failed, Finished
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Grammar
from octavo.decoding.grammar.llguidance import Backend
from octavo.engine.ipc import UseVocabulary

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6, "pattern": "^[a-z]*$"},
        "kind": {"enum": ["alpha", "beta", 3]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "count"],
    "additionalProperties": False,
}
COMPACT = StructuredOutputs(json=json.dumps(SCHEMA), disable_any_whitespace=True)
PROMPT = list(b"answer: ")
BACKEND = Backend(vocabulary())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB_SIZE)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return folder


def engine(tiny: Path, **options: Any) -> LocalEngine:
    made = LocalEngine(tiny, **options)
    made.link.inbox.append(UseVocabulary(vocabulary()))
    return made


def run(made: LocalEngine, *requests: Request) -> None:
    made.submit(*requests)
    while made.link.inbox or made.engine.grammars.is_busy or made.engine.scheduler.has_work:
        made.step()


def asks(name: str, wanted: StructuredOutputs | None = COMPACT, **options: Any) -> Request:
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 80, "eos_token_ids": (EOS,)} | options
    made = request(name, PROMPT, **options)
    return made if wanted is None else replace(made, grammar=BACKEND.compile(wanted))


def said(made: LocalEngine, name: str) -> str:
    return bytes(each for each in made.tokens.get(name, []) if each != EOS).decode()


def kinds() -> list[Request]:
    return [
        asks("greedy", temperature=0.0),
        *[asks(f"seeded{i}", seed=i) for i in range(4)],
        asks("choices", index=1),
        asks("logprobs", logprobs=2, seed=0),
        asks("penalties", repetition_penalty=1.3, presence_penalty=0.5),
        asks("free", wanted=None, max_tokens=40),
        asks("regex", StructuredOutputs(regex="(ab|cd){3,9}")),
        asks("ignores ends", StructuredOutputs(regex="x{2,5}"), ignore_eos=True, eos_token_ids=()),
        asks("least", StructuredOutputs(regex="y{2,9}z?"), min_tokens=6),
    ]


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, list[int]]:
    found = {}
    for each in kinds():
        made = engine(tiny)
        run(made, each)
        end = made.ends[each.id]
        assert isinstance(end, Finished), end
        assert each.id == "free" or end.reason == "stop", (each.id, said(made, each.id))
        found[each.id] = made.tokens[each.id]
        if each.id not in ("free", "regex", "ignores ends", "least"):
            jsonschema.validate(json.loads(said(made, each.id)), SCHEMA)
    assert len({tuple(found[f"seeded{i}"]) for i in range(4)}) > 2
    return found


def test_forced_text_is_jumped_over_and_comes_to_the_same(
    tiny: Path, alone: dict[str, list[int]]
) -> None:
    assert alone["logprobs"] == alone["seeded0"], "one token a step, because logits are asked for"
    jumping, walking = engine(tiny), engine(tiny)
    run(jumping, asks("a", seed=0))
    run(walking, asks("a", seed=0, logprobs=0))
    assert jumping.tokens == walking.tokens
    assert len(jumping.outs["a"]) < len(walking.outs["a"]) // 2
    assert sum(len(out.logprobs or ()) for out in walking.outs["a"]) == len(walking.tokens["a"])


def test_batched_is_single(tiny: Path, alone: dict[str, list[int]]) -> None:
    made = engine(tiny, max_num_seqs=16)
    run(made, *kinds())
    assert made.tokens == alone


def test_preempted_and_chunked_is_single(tiny: Path, alone: dict[str, list[int]]) -> None:
    made = engine(
        tiny, max_num_seqs=12, max_num_batched_tokens=28, kv_cache_memory_bytes=36 << 10,
        enable_prefix_caching=False, max_model_len=96, overcommits=True,
    )  # fmt: skip
    run(made, *kinds())
    assert made.tokens == alone
    ends = [end for end in made.ends.values() if isinstance(end, Finished)]
    assert sum(end.num_preemptions for end in ends) > 0


def test_ends(tiny: Path, alone: dict[str, list[int]]) -> None:
    assert alone["ignores ends"] == [ord("x")] * 5, "as long as there is anything but the end"
    assert len([each for each in alone["least"] if each != EOS]) >= 6
    made = engine(tiny)
    run(
        made,
        asks("nothing", StructuredOutputs(grammar='start: ""')),
        asks("short", StructuredOutputs(choice=("a",)), min_tokens=5),
        asks("cut", max_tokens=7),
        asks("stopped", StructuredOutputs(choice=("abc",)), stop_token_ids=(ord("b"),)),
    )
    ends = {name: end for name, end in made.ends.items() if isinstance(end, Finished)}
    assert {name: end.reason for name, end in ends.items()} == {
        "nothing": "stop", "short": "stop", "cut": "length", "stopped": "stop",
    }  # fmt: skip
    assert [said(made, name) for name in ("nothing", "short", "stopped")] == ["", "a", "ab"]
    assert said(made, "cut") == '{"name"' and ends["stopped"].stop_token == ord("b")
    assert not made.engine.runner.state.grammars._known, "ended requests leave no grammar"


def test_one_fails_alone(tiny: Path, alone: dict[str, list[int]]) -> None:
    made = engine(tiny, max_num_seqs=16)
    bad = [
        replace(asks("does not build", None), grammar="start: nothing"),
        asks("no way out", StructuredOutputs(choice=("a", "b")), allowed_token_ids=(ord("c"),)),
    ]
    run(made, *bad, *kinds())
    for each in bad:
        end = made.ends.pop(each.id)
        assert isinstance(end, Failed) and end.error.status == 400
        made.tokens.pop(each.id, None)
    assert made.tokens == alone


def test_a_grammar_that_gives_up_while_running_fails_alone(tiny: Path) -> None:
    made = engine(tiny)
    made.submit(asks("x"), asks("y"))
    while len(made.outs.get("x", ())) < 3:
        made.step()
    grammars = made.engine.runner.state.grammars
    grammars.settle()  # its next mask may be under way
    known = grammars._known["x"]
    known.grammar.matcher.consume_token(0)  # no longer of use
    run(made)
    end = made.ends["x"]
    assert isinstance(end, Failed) and end.error.code == "grammar_limit"
    assert isinstance(made.ends["y"], Finished)
    jsonschema.validate(json.loads(said(made, "y")), SCHEMA)


def test_cancelled_while_its_grammar_is_built(tiny: Path) -> None:
    made = engine(tiny)
    made.submit(asks("gone"))
    made.cancel("gone")
    run(made, asks("stays"))
    end = made.ends["gone"]
    assert isinstance(end, Finished) and end.reason == "abort" and "gone" not in made.tokens
    assert isinstance(made.ends["stays"], Finished)


def test_who_wants_no_grammar_does_not_wait_for_one(tiny: Path) -> None:
    """An engine with nothing else to do begins at once with what comes while it waits for a grammar."""
    made = engine(tiny)
    gate, begun = threading.Event(), threading.Event()
    made.step()
    desk = made.engine.grammars
    assert desk._backend is not None
    backend = desk._backend.result()
    build = backend.build

    def slow(source: str) -> Grammar:
        begun.set()
        assert gate.wait(60)
        return build(source)

    backend.build = slow  # type: ignore[method-assign]
    made.submit(asks("bound"))
    with ThreadPoolExecutor(1) as threads:
        turn = threads.submit(made.step)
        assert begun.wait(60)
        made.submit(request("free", PROMPT, max_tokens=4))
        made.link.wake()  # as a message on the socket does
        turn.result(60)
    while "free" not in made.ends:
        made.step()
    assert desk.waiting_ids == ("bound",) and "bound" not in made.tokens
    gate.set()
    run(made)
    jsonschema.validate(json.loads(said(made, "bound")), SCHEMA)


def test_without_a_vocabulary_a_grammar_is_an_error(tiny: Path) -> None:
    made = LocalEngine(tiny)
    made.run([asks("early")])
    assert isinstance(made.ends["early"], Failed)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1, max_num_seqs=16, kv_cache_memory_bytes=1 << 25) as started:
        yield started


def test_llm(llm: LLM) -> None:
    params = [
        SamplingParams(n=3, seed=1, max_tokens=120, structured_outputs=COMPACT),
        SamplingParams(max_tokens=120, structured_outputs=COMPACT, stop=('"k',)),
        SamplingParams(max_tokens=20, structured_outputs=StructuredOutputs(choice=("yes", "no"))),
    ]
    many, stopped, choice = llm.generate(["x = "] * 3, params, use_tqdm=False)
    for output in many.outputs:
        assert output.finish_reason == "stop"
        jsonschema.validate(json.loads(output.text), SCHEMA)
    assert stopped.outputs[0].text.endswith('",') and stopped.outputs[0].stop_reason == '"k'
    assert choice.outputs[0].text in {"yes", "no"}


def test_llm_refuses_before_anything_runs(llm: LLM) -> None:
    wanted = StructuredOutputs(json='{"properties": {"a": {"not": {}}}}')
    with pytest.raises(RequestError, match="/properties/a/not"):
        llm.generate(["a", "b"], [SamplingParams(), SamplingParams(structured_outputs=wanted)])
