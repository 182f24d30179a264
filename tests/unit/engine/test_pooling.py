"""Pooling requests in the real engine: steps, chunks, prefix hits, neighbours that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from local_engine import LocalEngine, request
from octavo.core.errors import ConfigError
from octavo.core.params import PoolingParams, SamplingParams
from octavo.core.request import Request
from octavo.core.result import Failed, Finished
from pooling_cases import expected, prompt, save


def ask(name: str, ids: list[int], **options: Any) -> Request:
    pair_start = options.pop("pair_start", 0)
    params = {"task": "embed", "use_activation": True, "skip_reading_prefix_cache": False}
    return Request(
        id=name,
        token_ids=tuple(ids),
        params=SamplingParams(max_tokens=None),
        max_tokens=0,
        seed=0,
        arrived=0.0,
        pooling=PoolingParams(**(params | options)),
        pair_start=pair_start,
    )


def engine(folder: Path, **options: Any) -> LocalEngine:
    return LocalEngine(folder, **{"load_format": "auto", **options})


def values(local: LocalEngine, name: str) -> np.ndarray:
    pooled = local.pooled[name].values
    return np.frombuffer(pooled.data, "<f4").reshape(pooled.shape)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("encoder")
    return folder, save("BertModel", "plain", folder)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("decoder")
    return folder, save("Qwen3Model", "plain", folder)


def test_an_encoder_keeps_nothing_and_cuts_no_prompt(encoder: tuple[Path, Any]) -> None:
    folder, oracle = encoder
    local = engine(folder, max_num_seqs=4)
    assert local.ready.num_blocks == 0 and local.ready.max_model_len == 160
    assert dict(local.ready.memory)["kv cache"] == 0
    lengths = [160, 1, 90, 16, 33, 80, 7, 160]
    asked = [ask(f"r{i}", prompt(n, n), task="token_embed") for i, n in enumerate(lengths)]
    local.run(asked)
    for one in asked:
        wanted = expected(oracle, list(one.token_ids)).numpy()
        wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
        assert np.allclose(values(local, one.id), wanted, atol=1e-5)
        end = local.ends[one.id]
        assert isinstance(end, Finished) and end.num_output == 0 and end.reason == "stop"
    steps = local.engine.steps.tail(100)
    budget = local.ready.max_num_batched_tokens
    assert all(step.num_tokens <= budget for step in steps)
    assert [step.num_tokens for step in steps if step.slices] == [
        160 + 1 + 90 + 16,
        33 + 80 + 7 + 160,
    ]
    assert all(piece.start == 0 for step in steps for piece in step.slices)


def test_steps_of_one_token_each_are_not_replayed(encoder: tuple[Path, Any]) -> None:
    folder, oracle = encoder
    local = engine(folder, max_num_seqs=2)
    assert ("steps", "eager", "prompts are pooled") in local.ready.decisions
    for turn in range(3):
        asked = [ask(f"{turn}-{i}", prompt(1, 2 * turn + i), task="token_embed") for i in range(2)]
        local.run(asked)
        for one in asked:
            wanted = expected(oracle, list(one.token_ids)).numpy()
            wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
            assert np.allclose(values(local, one.id), wanted, atol=1e-5)


def test_a_step_that_could_not_take_the_longest_prompt_is_refused(
    encoder: tuple[Path, Any],
) -> None:
    with pytest.raises(ConfigError, match="longest prompt"):
        engine(encoder[0], max_num_batched_tokens=64)
    assert engine(encoder[0], max_num_batched_tokens=64, max_model_len=64).ready.max_model_len == 64
    with pytest.raises(ConfigError, match="--runner generate"):
        engine(encoder[0], runner="generate")


def test_a_decoder_embeds_its_last_token_in_chunks_and_from_cached_prefixes(
    decoder: tuple[Path, Any],
) -> None:
    folder, oracle = decoder
    local = engine(folder, max_num_seqs=4, max_num_batched_tokens=48)
    ids = prompt(150, 3)
    wanted = expected(oracle, ids)[-1].numpy()
    wanted = wanted / np.linalg.norm(wanted)
    local.run([ask("cold", ids)])
    assert np.allclose(values(local, "cold"), wanted, atol=1e-5)
    assert len([step for step in local.engine.steps.tail(100) if step.slices]) == 4
    local.run([ask("warm", ids)])
    assert local.pooled["warm"].num_cached == 144
    assert local.pooled["warm"].values == local.pooled["cold"].values
    local.run([ask("skips", ids, skip_reading_prefix_cache=True)])
    assert local.pooled["skips"].num_cached == 0
    local.run([ask("rows", ids, task="token_embed", skip_reading_prefix_cache=True)])
    assert np.allclose(values(local, "rows")[-1], wanted, atol=1e-5)
    assert values(local, "rows").shape == (150, 48)


def test_what_cannot_be_pooled_fails_alone(decoder: tuple[Path, Any]) -> None:
    local = engine(decoder[0], max_num_seqs=4)
    ids = prompt(40)
    local.run([ask("first", ids)])
    # A front end would have decided to skip the cache for these.
    local.run([ask("missing", ids, task="token_embed"), ask("fine", ids), request("text", [5, 6])])
    missing, text = local.ends["missing"], local.ends["text"]
    assert isinstance(missing, Failed) and "8 of 40" in missing.error.message
    assert isinstance(text, Failed) and text.error.code == "no_generation"
    assert local.pooled["fine"].values == local.pooled["first"].values


def test_a_generating_folder_with_modules_embeds(tmp_path: Path) -> None:
    """As an embedder that was trained from a language model is published: without `model.` in front of its names."""
    oracle = save("Qwen3Model", "plain", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"Qwen3Model"', '"Qwen3ForCausalLM"'))
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},'
        ' {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},'
        ' {"idx": 3, "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}]'
    )
    for name, text in (
        ("1_Pooling", '{"word_embedding_dimension": 48, "pooling_mode_mean_tokens": true}'),
        (
            "2_Dense",
            '{"in_features": 48, "out_features": 5, "activation_function": "torch.nn.Tanh"}',
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    dense = {"linear.weight": torch.randn(5, 48), "linear.bias": torch.randn(5)}
    save_file(dense, tmp_path / "2_Dense" / "model.safetensors")
    local = engine(tmp_path, max_num_batched_tokens=32)
    assert local.ready.pooling is not None and local.ready.pooling.num_features == 5
    ids = prompt(100, 8)
    local.run([ask("a", ids, skip_reading_prefix_cache=True)])
    mean = expected(oracle, ids).mean(0)
    wanted = torch.nn.functional.normalize(
        (mean @ dense["linear.weight"].T + dense["linear.bias"]).tanh(), dim=0
    )
    assert np.allclose(values(local, "a"), wanted.numpy(), atol=1e-5)
    assert engine(tmp_path, runner="generate", load_format="dummy").ready.pooling is None


def test_weights_rounded_at_load(encoder: tuple[Path, Any]) -> None:
    """Matrices of the layers alone: tables, norms and what stands behind the pooling stay."""
    exact, rounded = engine(encoder[0]), engine(encoder[0], quantization="int8")
    ids = prompt(60, 2)
    for local in (exact, rounded):
        local.run([ask("a", ids)])
    cosine = float(values(exact, "a") @ values(rounded, "a"))
    assert 0.99 < cosine < 0.9999999
    weights = [dict(local.ready.memory)["weights"] for local in (exact, rounded)]
    assert weights[1] < 0.6 * weights[0]


@pytest.mark.parametrize("which", ["encoder", "decoder"])
@pytest.mark.parametrize("order", ["kernel", "nan", "swap"])
def test_an_ordered_fault_is_its_request_s_alone(
    which: str,
    order: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OCTAVO_TEST_BUILD", "1")
    folder, _ = request.getfixturevalue(which)
    if which == "encoder" and order == "swap":
        pytest.skip("keeps no blocks")
    prompts = [[token for token in prompt(n) if token != 9] for n in (3, 40, 17, 60)]
    good = [ask(f"n{i}", ids) for i, ids in enumerate(prompts)]
    good.append(ask("rows", prompts[1], task="token_embed", skip_reading_prefix_cache=True))
    budget = None if which == "encoder" else 24
    clean = engine(folder, max_num_seqs=8, max_num_batched_tokens=budget)
    clean.run(good)
    orders = (f"{order}:token=9",)
    local = engine(
        folder,
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        inject=orders,
        fault_dir=str(tmp_path),
    )
    local.run([ask("first", [5, 9]), *good[:2], ask("between", [9] * 30), *good[2:]])
    for each in good:
        assert local.pooled[each.id].values == clean.pooled[each.id].values, each.id
    codes = {"kernel": "request_fault", "nan": "not_finite", "swap": "kv_epoch"}
    for name in ("first", "between"):
        end = local.ends[name]
        assert isinstance(end, Failed) and end.error.code == codes[order]
    assert len(list(tmp_path.iterdir())) == 2
    cache = local.engine.scheduler.cache
    assert cache.num_free == cache.num_blocks
    local.run([ask("after", prompts[2])])
    assert local.pooled["after"].values == clean.pooled["n2"].values


@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_what_throws_while_it_is_pooled_fails_alone(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After the hidden states were gathered: those of the others must not be gathered twice."""
    folder, _ = request.getfixturevalue(which)
    budget = None if which == "encoder" else 24
    clean = engine(folder, max_num_seqs=8, max_num_batched_tokens=budget)
    good = [ask(f"n{n}", prompt(n)) for n in (3, 17, 40)]
    clean.run(good)
    local = engine(folder, max_num_seqs=8, max_num_batched_tokens=budget, fault_dir=str(tmp_path))
    pooler: Any = local.engine.runner.pooler  # type: ignore[attr-defined]
    finish = pooler.finish

    def finishing(hidden_ND: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        if params.task == "token_embed":
            raise ValueError("a shape that nobody thought of")
        result: torch.Tensor = finish(hidden_ND, params)
        return result

    pooler.finish = finishing
    bad = ask("bad", prompt(20), task="token_embed", skip_reading_prefix_cache=True)
    local.run([good[0], bad, *good[1:]])
    for each in good:
        assert local.pooled[each.id].values == clean.pooled[each.id].values, each.id
    end = local.ends["bad"]
    assert isinstance(end, Failed) and (end.error.code, end.error.phase) == (
        "request_fault",
        "pool",
    )
