"""The same tokens whatever happens around a request: batch mates, chunks, prefix hits, preemption, cancellation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pytest

from local_engine import LocalEngine, request, write_tiny
from octavo.core.errors import ModelError
from octavo.core.result import Finished
from octavo.kernels.cpu import extension
from octavo.meter.stepfile import read_steplog

PROMPT_LENGTHS = (1, 5, 16, 17, 40, 100, 33, 64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(320) for _ in range(n)] for n in PROMPT_LENGTHS]


AHEAD = pytest.mark.parametrize("ahead", [None, True], ids=["one at a time", "one ahead"])
"""Steps of one at a time and steps that are launched while the one before them runs: the same bytes."""


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, list[int]]:
    """Each request run by itself, in an engine of its own state: the truth the others are held against."""
    engine = LocalEngine(tiny, enable_prefix_caching=False)
    for i, ids in enumerate(prompts()):
        engine.run([request(f"g{i}", ids, max_tokens=24)])
        engine.run([request(f"s{i}", ids, max_tokens=24, temperature=1.0, seed=i)])
    assert len({tuple(tokens) for tokens in engine.tokens.values()}) > 8, (
        "the tiny model says different things"
    )
    return engine.tokens


def all_requests() -> list:
    ids = prompts()
    greedy = [request(f"g{i}", p, max_tokens=24, arrived=i) for i, p in enumerate(ids)]
    seeded = [
        request(f"s{i}", p, max_tokens=24, temperature=1.0, seed=i, arrived=i)
        for i, p in enumerate(ids)
    ]
    return greedy + seeded


@AHEAD
def test_batched_is_single(tiny: Path, alone: dict[str, list[int]], ahead: bool | None) -> None:
    engine = LocalEngine(tiny, max_num_seqs=16, async_scheduling=ahead)
    assert engine.run(all_requests()) == alone
    assert (engine.engine.ahead is not None) == bool(ahead)


@AHEAD
def test_chunked_is_whole(tiny: Path, alone: dict[str, list[int]], ahead: bool | None) -> None:
    engine = LocalEngine(tiny, max_num_seqs=3, max_num_batched_tokens=19, async_scheduling=ahead)
    assert engine.run(all_requests()) == alone


@AHEAD
def test_prefix_hit_is_miss(tiny: Path, alone: dict[str, list[int]], ahead: bool | None) -> None:
    engine = LocalEngine(tiny, async_scheduling=ahead)
    engine.run(all_requests())
    first = {name: list(tokens) for name, tokens in engine.tokens.items()}
    engine.tokens.clear()
    engine.ends.clear()
    assert engine.run(all_requests()) == first == alone
    hits = [end.num_cached for end in engine.ends.values() if isinstance(end, Finished)]
    assert sum(hits) >= 2 * (16 + 32 + 32 + 96 + 48), "every full block but the last is found again"


@AHEAD
def test_preempted_is_not(tiny: Path, alone: dict[str, list[int]], ahead: bool | None) -> None:
    # 2 layers x 2 heads x 8 dims x 4 bytes x 2 = 256 bytes a token; the pool holds about 160 tokens.
    engine = LocalEngine(
        tiny,
        overcommits=True,
        max_model_len=160,
        kv_cache_memory_bytes=256 * 16 * 11,
        max_num_seqs=16,
        async_scheduling=ahead,
    )
    assert engine.run(all_requests()) == alone
    assert engine.engine.scheduler.counters.num_preemptions > 0, (
        "the pool was meant to be too small"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_narrow_cache_changes_nothing_with_company(
    tiny: Path, dtype: Literal["bfloat16", "float16", "int8"]
) -> None:
    """Batched, chunked, after prefix hits and after preemption: the tokens and log-probabilities of each alone."""
    options = {"logprobs": 1, "max_tokens": 24, "ignore_eos": True}
    ids = prompts()
    alone = LocalEngine(tiny, kv_cache_dtype=dtype, enable_prefix_caching=False)
    for i, p in enumerate(ids):
        alone.run([request(f"g{i}", p, **options)])
    per_token = 2 * 2 * 2 * (8 + 4 if dtype == "int8" else 16)  # 2 layers, 2 heads of 8
    small = {
        "max_model_len": 160,
        "kv_cache_memory_bytes": per_token * 16 * 11,
        "overcommits": True,
        "async_scheduling": True,
    }
    for how in ({}, {"max_num_batched_tokens": 33, "threads": 2}, small):
        engine = LocalEngine(tiny, kv_cache_dtype=dtype, max_num_seqs=16, **how)
        for _ in range(2):  # the second time, prefixes are found
            engine.outs.clear()
            engine.ends.clear()
            engine.run([request(f"g{i}", p, arrived=i, **options) for i, p in enumerate(ids)])
            for name, outs in alone.outs.items():
                got = [(out.token_ids, out.logprobs) for out in engine.outs[name]]
                assert got == [(out.token_ids, out.logprobs) for out in outs]
        if how is small:
            assert engine.engine.scheduler.counters.num_preemptions > 0
        else:
            assert sum(getattr(end, "num_cached", 0) for end in engine.ends.values()) > 100
    assert ("kv_cache_dtype", dtype, "as given") in engine.ready.decisions


@pytest.mark.parametrize(("quantization", "turns"), [("none", 600), ("int8", 200), ("int4", 200)])
def test_log_probabilities_are_the_same_bits_in_any_company(
    tiny: Path, quantization: str, turns: int
) -> None:
    """Tokens could agree by luck; log-probabilities show every bit of the logits. 1,000 random compositions: batch
    mates, chunks, prefix hits from earlier turns, preemption, threads, and steps that are replayed or are not.
    """
    options = {"logprobs": 2, "max_tokens": 6, "ignore_eos": True}
    plain = {"enable_prefix_caching": False, "enforce_eager": True}
    reference = LocalEngine(tiny, quantization=quantization, **plain)
    for i, ids in enumerate(prompts()):
        reference.run([request(f"r{i}", ids, **options)])
    small = {"max_model_len": 160, "kv_cache_memory_bytes": 256 * 16 * 11, "overcommits": True}
    engines = [
        LocalEngine(tiny, quantization=quantization, **shape)
        for shape in (
            {"max_num_seqs": 2, "max_num_batched_tokens": 32},
            {"max_num_seqs": 5, "max_num_batched_tokens": 45, "enable_prefix_caching": False},
            {"max_num_seqs": 16, "max_num_batched_tokens": 512},
            {"max_num_seqs": 16, "max_num_batched_tokens": 64, **small, "async_scheduling": True},
        )
    ]
    rng = random.Random(2)
    for turn in range(turns):
        engine = rng.choice(engines)
        extension.set_num_threads(rng.choice([1, 2, 3]))
        chosen = rng.choices(range(len(PROMPT_LENGTHS)), k=rng.randint(2, 12))
        ids = prompts()
        engine.run([request(f"{turn}-{k}-{i}", ids[i], **options) for k, i in enumerate(chosen)])
        for k, i in enumerate(chosen):
            got = [out.logprobs for out in engine.outs.pop(f"{turn}-{k}-{i}")]
            assert got == [out.logprobs for out in reference.outs[f"r{i}"]], (turn, i)
    assert engines[3].engine.scheduler.counters.num_preemptions > 0
    assert ("steps", "eager", "--enforce-eager") in reference.ready.decisions
    for engine in engines:
        assert engine.engine.runner.graphs.refusal is None, "steps were to be replayed"


def test_replayed_steps_equal_eager_ones_with_a_table_of_their_own(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, tie_word_embeddings=False)
    options = {"logprobs": 2, "max_tokens": 12, "ignore_eos": True}
    found = []
    for is_eager in (True, False):
        engine = LocalEngine(folder, enforce_eager=is_eager)
        engine.run([request(str(i), ids, **options) for i, ids in enumerate(prompts())])
        assert (engine.engine.runner.graphs.refusal is None) is not is_eager
        found.append({name: [out.logprobs for out in outs] for name, outs in engine.outs.items()})
    assert found[0] == found[1]


@AHEAD
def test_sliding_window_frees_and_agrees(tmp_path: Path, ahead: bool | None) -> None:
    folder = write_tiny(
        tmp_path,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
    )
    ids = prompts()[5] * 2
    large = LocalEngine(folder, enable_prefix_caching=False)
    expected = large.run([request("a", ids, max_tokens=64)])["a"]
    options = {"max_num_batched_tokens": 26, "kv_cache_memory_bytes": 1 << 18}
    small = LocalEngine(folder, async_scheduling=ahead, **options)
    small.submit(request("a", ids, max_tokens=64))
    most_held = 0
    while small.link.inbox or small.engine.scheduler.has_work:
        small.step()
        for sequence in small.engine.scheduler.running:
            most_held = max(most_held, sum(block != 0 for block in sequence.blocks[1]))
    assert small.tokens["a"] == expected
    assert most_held <= -(-(24 + 26) // 16) + 1, (
        "a window layer keeps its window and one chunk only"
    )


def test_cancel_at_every_step_returns_the_blocks(tiny: Path, alone: dict[str, list[int]]) -> None:
    for after in range(30):
        engine = LocalEngine(
            tiny, max_num_seqs=4, max_num_batched_tokens=24, enable_prefix_caching=False
        )
        free = engine.engine.scheduler.cache.num_free
        engine.submit(*all_requests()[:6])
        for _ in range(after):
            engine.step()
        engine.cancel("g4")
        engine.cancel("unknown")
        engine.run()
        assert engine.engine.scheduler.cache.num_free == free
        end = engine.ends["g4"]
        assert isinstance(end, Finished)
        for name in ("g0", "g1", "g2", "g3", "g5"):
            assert engine.tokens[name] == alone[name]


def test_tenants_do_not_share_prefixes(tiny: Path) -> None:
    engine = LocalEngine(tiny)
    ids = prompts()[5]
    engine.run([request("a", ids, cache_scope="alice")])
    engine.run([request("b", ids, cache_scope="bob")])
    engine.run([request("c", ids, cache_scope="alice")])
    cached = {
        name: end.num_cached for name, end in engine.ends.items() if isinstance(end, Finished)
    }
    assert cached == {"a": 0, "b": 0, "c": 96}


def test_n_choices_compute_the_prompt_once(tiny: Path) -> None:
    engine = LocalEngine(tiny, max_num_seqs=8)
    ids = prompts()[5]
    engine.run([request(f"n{i}", ids, temperature=1.0, seed=7, index=i) for i in range(8)])
    assert engine.engine.scheduler.stats().prompt_tokens == 100 + 7 * 4
    assert len({tuple(tokens) for tokens in engine.tokens.values()}) > 1


def test_logprobs_and_prompt_logprobs_do_not_depend_on_chunks(tiny: Path) -> None:
    ids = prompts()[5]
    seen = []
    for budget in (9, 24, 512):
        engine = LocalEngine(tiny, max_num_seqs=1, max_num_batched_tokens=max(budget, 17))
        engine.run([request("a", ids, logprobs=2, prompt_logprobs=1, max_tokens=4)])
        outs = engine.outs["a"]
        prompt = outs[0].prompt_logprobs
        assert prompt is not None and len(prompt) == len(ids) - 1
        assert [entry.token_ids[0] for entry in prompt] == ids[1:]
        assert all(out.prompt_logprobs is None for out in outs[1:])
        assert all(out.logprobs is not None and len(out.logprobs[0].token_ids) == 3 for out in outs)
        seen.append([entry.logprobs for entry in prompt])
    for other in seen[1:]:
        for one, two in zip(seen[0], other, strict=True):
            assert one == pytest.approx(two, abs=1e-4)


def test_min_tokens_and_stop_tokens(tiny: Path, alone: dict[str, list[int]]) -> None:
    stop = alone["g3"][5]
    first = alone["g3"].index(stop)
    engine = LocalEngine(tiny, enable_prefix_caching=False)
    engine.run([request("a", prompts()[3], max_tokens=24, stop_token_ids=(stop,))])
    end = engine.ends["a"]
    assert isinstance(end, Finished) and end.reason == "stop" and end.stop_token == stop
    assert engine.tokens["a"] == alone["g3"][: first + 1]
    engine.run([request("b", prompts()[3], max_tokens=24, min_tokens=20, stop_token_ids=(stop,))])
    assert len(engine.tokens["b"]) >= 20 and stop not in engine.tokens["b"][:20]


def test_unknown_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json"):
        LocalEngine(tmp_path)


def test_the_step_log_accounts_for_every_token(tiny: Path, tmp_path: Path) -> None:
    engine = LocalEngine(tiny, step_log=str(tmp_path), max_num_batched_tokens=24)
    engine.run(all_requests())
    engine.engine.steps.close()
    records = read_steplog(tmp_path)
    stats = engine.engine.scheduler.stats()
    assert len(records) == stats.num_steps
    sampled = sum(piece.num_sampled for record in records for piece in record.slices)
    assert (
        sampled == stats.generation_tokens == sum(len(tokens) for tokens in engine.tokens.values())
    )
