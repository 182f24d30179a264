"""One bad request fails alone: ordered faults of every kind, and neighbours who do not notice."""

from __future__ import annotations

import asyncio
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from fakes import EOS, VOCAB_SIZE, ServerThread, byte_tokenizer, make_state
from grammar_corpus import vocabulary
from local_engine import LocalEngine, request, write_tiny
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineError
from octavo.core.inject import injections
from octavo.core.request import Request
from octavo.core.result import Failed, Finished, TokenOut
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar import rows
from octavo.decoding.grammar.llguidance import Backend
from octavo.engine import inject, repro
from octavo.engine.client import EngineClient
from octavo.engine.ipc import UseVocabulary
from octavo.meter.metrics import Metrics
from octavo.text import inject as text_inject

MARK = 319
"""Stands in the prompts of victims alone."""
LENGTHS = (1, 5, 16, 17, 40, 100, 33, 64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def test_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_TEST_BUILD", "1")


def ids(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(MARK) for _ in range(length)]


def neighbours() -> list[Request]:
    """Greedy, seeded, penalised, with log-probabilities, with those of the prompt."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.3, "seed": 4},
        {"logprobs": 2},
        {"prompt_logprobs": 1, "logprobs": 0},
        {"temperature": 0.8, "top_p": 0.9, "seed": 5, "frequency_penalty": 0.4},
        {"bad_words_ids": ((7, 8),)},
        {"min_tokens": 12, "stop_token_ids": (5,)},
    ]
    made = []
    for i, (length, options) in enumerate(zip(LENGTHS, kinds, strict=True)):
        phrases = options.pop("bad_words_ids", ())
        each = request(
            f"n{i}", ids(length, i), max_tokens=20, arrived=i, ignore_eos=True, **options
        )
        made.append(replace(each, bad_words_ids=phrases))
    return made


def victim(name: str, length: int, arrived: float = 2.5, **options: Any) -> Request:
    prompt = [*ids(length - 1, 99), MARK]
    return request(name, prompt, max_tokens=20, arrived=arrived, **options)


def told(local: LocalEngine) -> dict[str, list[Any]]:
    """All that each neighbour was told, token by token."""
    return {
        name: [(out.token_ids, out.logprobs, out.prompt_logprobs) for out in outs]
        for name, outs in local.outs.items()
        if name.startswith("n")
    }


@pytest.fixture(scope="module")
def golden(tiny: Path) -> dict[str, list[Any]]:
    local = LocalEngine(tiny)
    local.run(neighbours())
    assert len(local.ends) == len(LENGTHS)
    return told(local)


def all_free(local: LocalEngine) -> bool:
    cache = local.engine.scheduler.cache
    return cache.num_free == cache.num_blocks and not local.engine.scheduler.by_id


@pytest.mark.parametrize("budget", [None, 30])
@pytest.mark.parametrize(
    ("order", "code", "phase"),
    [
        ("start", "request_fault", "start"),
        ("kernel", "request_fault", "forward"),
        ("sampler", "request_fault", "sample"),
        ("nan", "non_finite_logits", ""),
        ("swap", "kv_epoch", ""),
    ],
)
def test_a_fault_is_its_request_s_alone(
    tiny: Path,
    tmp_path: Path,
    golden: dict[str, list[Any]],
    order: str,
    code: str,
    phase: str,
    budget: int | None,
) -> None:
    """Victims at three places of the batch; whole prompts, and chunks of them."""
    local = LocalEngine(
        tiny,
        inject=(f"{order}:token={MARK}",),
        fault_dir=str(tmp_path),
        max_num_seqs=12,
        max_num_batched_tokens=budget,
    )
    bad = [victim("first", 20, -1), victim("between", 3, 3.5), victim("last", 50, 9)]
    local.run([*neighbours(), *bad])
    assert told(local) == golden
    for each in bad:
        end = local.ends[each.id]
        assert isinstance(end, Failed) and (end.error.code, end.error.phase) == (code, phase)
        assert end.error.status == 500 and each.id not in local.tokens
        assert order == "nan" or each.id in end.error.message
    assert all_free(local)
    stats = local.engine.scheduler.stats()
    assert stats.faults == ((phase or code, 3),)
    metrics = Metrics("m")
    metrics.observe_stats(stats)
    metrics.observe_stats(stats)
    assert metrics.value("octavo:request_faults_total", [("kind", phase or code)]) == 3
    assert metrics.value("octavo:kv_epoch_mismatches_total") == (3 if order == "swap" else 0)
    found = {repro.read(path).request.id: path for path in tmp_path.iterdir()}
    assert sorted(found) == ["between", "first", "last"]


def test_what_a_repro_file_says(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "made" / "when needed"
    local = LocalEngine(tiny, inject=(f"sampler:token={MARK}",), fault_dir=str(folder))
    bad = replace(victim("bad/../one", 20), cache_scope="of a key")
    local.run([bad, *neighbours()])
    [path] = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = repro.read(path)
    assert found.request == replace(bad, cache_scope="") and found.token_ids == bad.token_ids
    assert found.phase == "sample" and found.thrown is not None
    assert found.thrown.type == "InjectedError" and "in sampling" in "".join(found.thrown.traceback)
    assert [piece.row for piece in found.step.slices].count(found.row) == 1
    text = path.read_text()
    assert "of a key" not in text and '"torch"' in text and '"model"' in text
    other = ",".join(map(str, neighbours()[5].token_ids))
    assert other not in text, "what others said stays with them"
    [line] = [each.getMessage() for each in caplog.records if "failed alone" in each.getMessage()]
    assert str(path) in line and "InjectedError" in line
    assert "injected into" not in line, "an exception's text may quote a caller"


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(repro, "MAX_FILES", 3)
    local = LocalEngine(tiny, inject=("sampler",), fault_dir=str(tmp_path), max_num_seqs=2)
    local.run([request(f"r{i}", [i + 1]) for i in range(6)])
    assert all(isinstance(end, Failed) for end in local.ends.values())
    names = sorted(repro.read(path).request.id for path in tmp_path.iterdir())
    assert names == ["r3", "r4", "r5"], "the newest stay"


def test_a_folder_that_cannot_be_written_costs_the_file_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fault_dir = str(tmp_path / "file" / "below")
    local = LocalEngine(tiny, inject=(f"kernel:token={MARK}",), fault_dir=fault_dir)
    local.run([victim("bad", 4), request("good", [1, 2])])
    assert isinstance(local.ends["bad"], Failed) and isinstance(local.ends["good"], Finished)


def test_what_throws_once_is_nobody_s_fault(tiny: Path, golden: dict[str, list[Any]]) -> None:
    for whom in (f"token={MARK}", "*"):
        local = LocalEngine(tiny, inject=(f"kernel:{whom}:1",), max_num_seqs=12)
        local.run([*neighbours(), victim("unlucky", 20)])
        assert told(local) == golden and isinstance(local.ends["unlucky"], Finished)
    local = LocalEngine(tiny, inject=("kernel:*:1",))
    local.run([request("alone", [1, 2, 3])])
    assert isinstance(local.ends["alone"], Finished), "nor of one that was alone in the step"


def test_when_all_are_at_fault_the_engine_goes_on(tiny: Path, tmp_path: Path) -> None:
    """As the choices of one call that is poison: nobody gets through, but a token of nobody's does."""
    local = LocalEngine(tiny, inject=(f"kernel:token={MARK}",), fault_dir=str(tmp_path))
    local.run([victim(f"choice{i}", 20, index=i) for i in range(4)])
    local.run([victim("one more", 5)])
    assert {end.error.code for end in local.ends.values() if isinstance(end, Failed)} == {
        "request_fault"
    }
    assert len(local.ends) == 5 and all_free(local)
    local.run([request("good", [1, 2])])
    assert isinstance(local.ends["good"], Finished)
    for pool in (local.engine.runner.pool.layer(i) for i in range(2)):  # type: ignore[attr-defined]
        assert not pool.k[0].any() and not pool.v[0].any(), "the null block is null again"


def test_when_nothing_works_nobody_is_blamed(tiny: Path, tmp_path: Path) -> None:
    local = LocalEngine(tiny, inject=("kernel",), fault_dir=str(tmp_path / "faults"))
    local.submit(*neighbours())
    with pytest.raises(
        EngineError, match=r"all 8 requests of step 1 threw, 2 times over"
    ) as caught:
        while local.link.inbox or local.engine.scheduler.has_work:
            local.step()
    assert caught.value.code == "E-ENGINE-03" and not local.ends
    assert not (tmp_path / "faults").exists()


def test_a_replay_that_threw_is_recorded_anew(tiny: Path, golden: dict[str, list[Any]]) -> None:
    local = LocalEngine(tiny)
    local.submit(*neighbours())
    graphs: Any = local.engine.runner.graphs  # type: ignore[attr-defined]
    while 8 not in graphs._recordings or len(local.outs["n7"]) < 4:
        local.step()
    _, recording = graphs._recordings[8]

    def throw(_: object) -> None:
        raise RuntimeError("once")

    recording.refreshes.append(throw)
    local.run()
    assert told(local) == golden and len(local.ends) == 8
    assert graphs._recordings.get(8, (None, None))[1] is not recording


def test_poison_stays_out_of_the_prefix_cache(tiny: Path) -> None:
    """Not a number in the keys of a prompt's blocks: who sends the same prompt next must not be given them."""
    prompt = ids(70, 5)
    clean = LocalEngine(tiny)
    clean.run([request("again", prompt)])
    local = LocalEngine(tiny, inject=("nan:nth=1",), max_num_batched_tokens=24)
    local.run([request("first", prompt)])
    end = local.ends["first"]
    assert isinstance(end, Failed) and end.error.code == "non_finite_logits"
    local.run([request("again", prompt)])
    assert local.tokens["again"] == clean.tokens["again"]


def test_a_freed_block_that_held_poison_is_as_good_as_new(
    tiny: Path, golden: dict[str, list[Any]]
) -> None:
    """A pool so small that every block was a victim's before."""
    local = LocalEngine(
        tiny, inject=(f"nan:token={MARK}",), kv_cache_memory_bytes=256 * 16 * 32, max_num_seqs=12
    )
    for turn in range(2):
        bad = victim(f"bad{turn}", 400, ignore_eos=True)
        local.run([bad])
        assert isinstance(local.ends[bad.id], Failed)
    local.run([*neighbours(), victim("beside", 30)])
    assert told(local) == golden


def test_a_block_handed_out_twice_is_caught_in_the_same_step(
    tiny: Path, golden: dict[str, list[Any]]
) -> None:
    """As if the scheduler freed a block under its owner: who read it last is stopped before it reads another's."""
    local = LocalEngine(tiny, max_num_seqs=12)
    local.submit(request("robbed", ids(40, 50), max_tokens=300, arrived=-1, ignore_eos=True))
    while len(local.outs.get("robbed", ())) < 3:
        local.step()
    [pool] = local.engine.scheduler.cache.pools
    stolen = local.engine.scheduler.running[0].blocks[0][1]
    pool._blank.append(stolen)  # the next that is handed out
    engine = local.engine
    local.submit(*neighbours())
    engine.step()
    [end] = [
        event
        for message in local.link.sent
        for event in getattr(message, "events", ())
        if isinstance(event, Failed)
    ]
    assert end.id == "robbed" and end.error.code == "kv_epoch"
    assert engine.scheduler.counters.num_steps == 4, "in the step that handed it out"
    assert "n0" in engine.scheduler.by_id, "the new owner goes on"


def test_a_model_with_windows_keeps_its_peace(tmp_path: Path) -> None:
    """Blocks that a window has passed are freed and handed out anew while they stand in the table: no alarm."""
    folder = write_tiny(
        tmp_path,
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=32,
    )
    found = []
    for memory in (1 << 20, 256 * 16 * 25):
        local = LocalEngine(folder, kv_cache_memory_bytes=memory, max_num_batched_tokens=32)
        local.run([request(f"n{i}", ids(90, i), max_tokens=120, ignore_eos=True) for i in range(6)])
        assert all(isinstance(end, Finished) for end in local.ends.values()), local.ends
        found.append(told(local))
    assert found[0] == found[1]


# -- grammars ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("bytes"), vocab_size=VOCAB_SIZE)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return folder


def held_to(name: str, regex: str, prompt: str, **options: Any) -> Request:
    made = request(name, list(prompt.encode()), temperature=1.0, eos_token_ids=(EOS,), **options)
    source = Backend(vocabulary()).compile(StructuredOutputs(regex=regex))
    return replace(made, grammar=source)


def run_with_grammars(local: LocalEngine, requests: list[Request]) -> None:
    local.link.inbox.append(UseVocabulary(vocabulary()))
    local.submit(*requests)
    while local.link.inbox or local.engine.grammars.is_busy or local.engine.scheduler.has_work:
        local.step()


def with_grammars() -> list[Request]:
    held = [held_to(f"n{i}", "[a-z]{3,30}!", "say: ", seed=i, arrived=i) for i in range(4)]
    return [*held, request("n4", list(b"free"), temperature=1.0, seed=9)]


@pytest.mark.parametrize("is_cheap", [True, False])
@pytest.mark.parametrize("where", ["mask", "advance"])
def test_what_a_grammar_throws_is_its_request_s_alone(
    byte_model: Path, tmp_path: Path, where: str, is_cheap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks that are cheap are computed by the loop, others by the thread beside it."""
    monkeypatch.setattr(rows, "_CHEAP_S", 1.0 if is_cheap else 0.0)
    clean = LocalEngine(byte_model)
    run_with_grammars(clean, with_grammars())
    orders = (f"grammar:token={ord('#')}",) if where == "mask" else ()
    local = LocalEngine(byte_model, inject=orders, fault_dir=str(tmp_path))
    bad = held_to("bad", "[a-z]{3,30}!", "#", arrived=1.5)
    if where == "advance":
        learn = local.engine.runner.state.grammars.learn  # type: ignore[attr-defined]

        def learning(each: Request, grammar: Any) -> None:
            if each.id == "bad":
                break_at_second_token(grammar)
            learn(each, grammar)

        local.engine.runner.state.grammars.learn = learning  # type: ignore[attr-defined]
    run_with_grammars(local, [*with_grammars(), bad])
    assert told(local) == told(clean)
    end = local.ends["bad"]
    assert isinstance(end, Failed) and (end.error.code, end.error.phase) == (
        "request_fault",
        "grammar",
    )
    assert ("a library's own" if where == "advance" else "injected") in end.error.message
    assert not local.engine.runner.state.grammars._known and all_free(local)  # type: ignore[attr-defined]
    run_with_grammars(local, [replace(each, id=f"m{each.id}") for each in with_grammars()])
    again = {name[1:]: tokens for name, tokens in local.tokens.items() if name.startswith("m")}
    assert again == {name: tokens for name, tokens in clean.tokens.items()}


def break_at_second_token(grammar: Any) -> None:
    """Have it throw what a library might."""
    advance, taken = grammar.advance, []

    def advancing(token_id: int) -> None:
        taken.append(token_id)
        if len(taken) == 2:
            raise ValueError("a library's own")
        advance(token_id)

    grammar.advance = advancing


def test_logits_that_are_no_numbers_are_seen_through_a_mask(
    byte_model: Path, tmp_path: Path
) -> None:
    """What a grammar forbids cannot spoil a choice, but a log-probability is made of all logits."""
    clean = LocalEngine(byte_model)
    run_with_grammars(clean, with_grammars())
    orders = (f"nan:token={ord('#')}",)
    local = LocalEngine(byte_model, inject=orders, fault_dir=str(tmp_path))
    bad = [held_to("bad", "[a-z]{3,30}!", "#"), held_to("forced", "only this!", "#")]
    run_with_grammars(local, [*with_grammars(), *bad])
    assert told(local) == told(clean)
    ends = [local.ends[each.id] for each in bad]
    assert [end.error.code for end in ends if isinstance(end, Failed)] == ["non_finite_logits"] * 2
    model: Any = local.engine.runner.model  # type: ignore[attr-defined]
    logits = model.logits

    def one_bad(hidden_ND: Any) -> Any:
        logits_NV = logits(hidden_ND)
        logits_NV[:, ord("Z")] = bad_logit
        return logits_NV

    model.logits = one_bad
    again = [replace(each, id=f"m{each.id}") for each in with_grammars()[:4]]
    for bad_logit in (float("inf"), float("nan")):
        shown = held_to(f"shown {bad_logit}", "[a-z]{3,30}!", "say: ", logprobs=1)
        run_with_grammars(local, [*[replace(e, id=f"{e.id}{bad_logit}") for e in again], shown])
        for i in range(4):
            assert local.tokens[f"mn{i}{bad_logit}"] == clean.tokens[f"n{i}"]
        end = local.ends[shown.id]
        assert isinstance(end, Failed) and end.error.code == "non_finite_logits"
    local.run([request("prompt", list(b"say: "), prompt_logprobs=1)])
    end = local.ends["prompt"]
    assert isinstance(end, Failed) and end.error.code == "non_finite_logits"


def test_masks_of_a_step_that_threw_are_not_left_for_the_next(byte_model: Path) -> None:
    local = LocalEngine(byte_model, inject=(f"kernel:token={ord('#')}",))
    run_with_grammars(local, [held_to("bad", "[a-z]{3,30}!", "#")])
    assert isinstance(local.ends["bad"], Failed)
    assert not local.engine.runner.state.grammars._pending  # type: ignore[attr-defined]
    free = request("n4", list(b"free"), temperature=1.0, seed=9)
    run_with_grammars(local, [free])
    clean = LocalEngine(byte_model)
    clean.run([free])
    assert told(local) == told(clean)


# -- the rest of the kinds, and the real process -------------------------------------------------------------------------


def test_a_text_that_breaks_the_tokenizer_fails_alone() -> None:
    state = make_state()
    text_inject.install(state.frontend.tokenizer, injections((f"tokenizer:token={ord('#')}",)))
    with ServerThread(state) as server, httpx.Client(base_url=server.url) as client:
        bodies = [{"model": "fake-model", "prompt": text, "max_tokens": 3} for text in "a#b"]
        answers = [client.post("/v1/completions", json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["error"]["type"] == "server_error"


def test_a_slow_step_takes_so_much_longer(tiny: Path) -> None:
    local = LocalEngine(tiny, inject=(f"slow:30:token={MARK}:2",))
    local.run([victim("slow", 4)])
    records = local.engine.steps.tail(20)
    assert [record.elapsed_s >= 0.03 for record in records[:2]] == [True, True]
    assert min(record.elapsed_s for record in records[2:]) < 0.03


def test_hang_never_comes_back(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(BaseException):
        pass

    class Clock:
        turns = 0

        def sleep(self, _: float) -> None:
            self.turns += 1
            if self.turns > 50:
                raise Enough

    clock = Clock()
    monkeypatch.setattr(inject, "time", clock)
    local = LocalEngine(tiny, inject=(f"hang:token={MARK}",))
    with pytest.raises(Enough):
        local.run([victim("stuck", 4)])
    assert clock.turns > 50 and len(local.outs["stuck"]) == 1, "after the first token"


EXIT = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from local_engine import LocalEngine, request
local = LocalEngine(Path(sys.argv[1]), inject=("exit:nth=2",))
local.submit(request("a", [1, 2]), request("b", [3, 4]))
while True:
    local.step()
    print(sorted(local.tokens), flush=True)
"""


def test_exit_is_a_death_in_the_middle_of_a_step(tiny: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tiny), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr
    assert done.stdout.splitlines() == ["['a', 'b']"], "not before there is output to go on from"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_through_the_real_process(
    tiny: Path, tmp_path: Path, golden: dict[str, list[Any]]
) -> None:
    config = EngineConfig(
        model=str(tiny),
        load_format="dummy",
        kv_cache_memory_bytes=1 << 20,
        max_num_seqs=12,
        threads=1,
        inject=(f"kernel:token={MARK}", f"swap:token={MARK - 1}"),
        fault_dir=str(tmp_path),
    )
    asked = [replace(each, token_ids=each.token_ids) for each in neighbours()]
    asked = [each for each in asked if MARK - 1 not in each.token_ids]
    swapped = request("swapped", [1, 2, MARK - 1], max_tokens=20)

    async def listen(client: EngineClient, each: Request) -> tuple[list[Any], Any]:
        outs: list[Any] = []
        async for event in client.generate(each):
            if not isinstance(event, TokenOut):
                return outs, event
            outs.append((event.token_ids, event.logprobs, event.prompt_logprobs))
        raise AssertionError("no end")

    async with EngineClient(config) as client:
        await client.wait_ready()
        requests = [*asked, victim("bad", 20), swapped]
        heard = await asyncio.gather(*(listen(client, each) for each in requests))
        assert client.status().state == "ready"
        assert dict(client.stats.faults) == {"forward": 1, "kv_epoch": 1}
    for each, (outs, end) in zip(asked, heard, strict=False):
        assert isinstance(end, Finished) and outs == golden[each.id]
    assert [end.error.code for _, end in heard[-2:]] == ["request_fault", "kv_epoch"]
    assert len(list(tmp_path.iterdir())) == 2


def test_without_the_build_flag_it_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_TEST_BUILD")
    with pytest.raises(ConfigError, match="breaks requests on purpose"):
        LocalEngine(tiny, inject=("nan",))


def test_random_compositions_with_a_victim(tiny: Path, tmp_path: Path) -> None:
    """A hundred batches, each with a fault of some kind and place beside neighbours whose every bit is known."""
    options = {"logprobs": 2, "max_tokens": 6, "ignore_eos": True}
    plain = LocalEngine(tiny, enable_prefix_caching=False)
    for i, length in enumerate(LENGTHS):
        plain.run([request(f"r{i}", ids(length, i), **options)])
    engines = [
        LocalEngine(
            tiny,
            inject=(f"{order}:token={MARK}",),
            fault_dir=str(tmp_path),
            max_num_seqs=9,
            max_num_batched_tokens=budget,
        )
        for order, budget in (("kernel", 40), ("sampler", 64), ("nan", 25), ("swap", 512))
    ]
    rng = random.Random(7)
    for turn in range(100):
        local = rng.choice(engines)
        chosen = rng.choices(range(len(LENGTHS)), k=rng.randint(1, 8))
        batch = [
            request(f"{turn}-{k}-{i}", ids(LENGTHS[i], i), **options) for k, i in enumerate(chosen)
        ]
        bad = [victim(f"{turn}-bad{k}", rng.randint(1, 60)) for k in range(rng.randint(1, 3))]
        batch += bad
        rng.shuffle(batch)
        local.run(batch)
        for k, i in enumerate(chosen):
            got = [out.logprobs for out in local.outs.pop(f"{turn}-{k}-{i}")]
            assert got == [out.logprobs for out in plain.outs[f"r{i}"]], (turn, i)
        assert all(isinstance(local.ends[each.id], Failed) for each in bad)
    assert all(all_free(local) for local in engines)
    assert all(len(local.ends) > 20 for local in engines)
