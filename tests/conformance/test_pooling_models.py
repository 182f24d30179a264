"""Every pooling architecture of the registry against transformers: tiny random weights, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from octavo.cache.pool import KVPool
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.errors import RequestError
from octavo.core.kvspec import BLOCK_SIZE
from octavo.layers.pooler import Gathered
from octavo.models.load import LoadedModel, load_model
from pooling_cases import CASES, Pooling, expected, pack, pool, prompt, save

MAX_ERROR = 2e-5
LENGTHS = (75, 1, 16, 33)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products on several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pooling:
    folder = tmp_path_factory.mktemp("-".join(request.param))
    oracle = save(*request.param, folder)
    return Pooling(folder, oracle, load_model(folder, dtype="float32"))


@torch.inference_mode()
def hidden(loaded: LoadedModel, prompts: list[list[int]], pairs: list[int]) -> list[torch.Tensor]:
    """Hidden states of whole prompts, together in one step."""
    batch = paged(loaded, pack(prompts, pairs))
    groups = tuple(msgspec.structs.replace(g, num_blocks=64) for g in loaded.groups)
    pool = KVPool(groups, len(loaded.model.kv_specs()), torch.device("cpu"))
    states_TD = loaded.model.forward(batch, pool)
    return list(states_TD.split([len(ids) for ids in prompts]))


def paged(loaded: LoadedModel, batch: ForwardBatch) -> ForwardBatch:
    """The batch with blocks for a model that keeps keys and values."""
    tables, slots, first = [], [], 1
    for length in batch.context_lens:
        count = -(-length // BLOCK_SIZE)
        tables.append(list(range(first, first + count)))
        slots += [first * BLOCK_SIZE + i for i in range(length)]
        first += count
    width = max(map(len, tables))
    group = GroupBatch(
        slots_T=torch.tensor(slots),
        block_tables_SB=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
        ),
    )
    return replace(batch, groups=(group,) * len(loaded.groups))


def test_matches_transformers_together_and_alone(model: Pooling) -> None:
    prompts = [prompt(length, seed=length) for length in LENGTHS]
    facts = model.loaded.facts
    assert facts.pooling is not None
    has_types = getattr(facts, "num_types", 1) > 1
    pairs = [30, 0, 0, 12] if has_types else [0] * len(prompts)
    together = hidden(model.loaded, prompts, pairs)
    for ids, pair, states_TD in zip(prompts, pairs, together, strict=True):
        wanted = expected(model.oracle, ids, pair)
        got = states_TD
        if facts.pooling.is_classifier:
            got = pool(model.loaded, states_TD, use_activation=False)[0]
        assert (got - wanted).abs().max() < MAX_ERROR
        [alone_TD] = hidden(model.loaded, [ids], [pair])
        assert torch.equal(alone_TD, states_TD), "the same bits alone and among others"
    if facts.pooling.is_classifier:  # trunks come with dense layers that nobody here uses
        assert facts.num_parameters == sum(p.numel() for p in model.oracle.parameters())


def test_probabilities(model: Pooling) -> None:
    spec = model.loaded.facts.pooling
    assert spec is not None
    if not spec.is_classifier:
        pytest.skip("an embedder")
    [states_TD] = hidden(model.loaded, [prompt(20)], [0])
    logits = expected(model.oracle, prompt(20))
    problem = model.oracle.config.problem_type
    sigmoid = len(logits) == 1 or problem == "multi_label_classification"
    wanted = logits.sigmoid() if sigmoid else logits.softmax(-1)
    torch.testing.assert_close(pool(model.loaded, states_TD)[0], wanted, atol=1e-5, rtol=0)
    assert len(spec.labels) == len(logits)


def test_other_dtypes_load(model: Pooling) -> None:
    [exact_TD] = hidden(model.loaded, [prompt(20)], [0])
    loaded = load_model(model.folder, dtype="bfloat16")
    [states_TD] = hidden(loaded, [prompt(20)], [0])
    assert states_TD.dtype == torch.bfloat16
    assert (states_TD.float() - exact_TD).abs().mean() < 0.1 * exact_TD.std()


@pytest.mark.parametrize("case", [("BertModel", "plain"), ("ModernBertModel", "plain")])
def test_other_kernels_agree(case: tuple[str, str], tmp_path: Path) -> None:
    """On a machine without the compiled kernels: torch alone, and the reference."""
    oracle = save(*case, tmp_path)
    for attention in ("torch_sdpa", "reference"):
        kernels = {"attention": attention, "layer_norm": "torch", "linear": "torch"}
        kernels |= {"add_layer_norm": "torch", "activate": "torch", "activate_and_mul": "torch"}
        loaded = load_model(tmp_path, dtype="float32", kernels=kernels)
        prompts = [prompt(50), prompt(3), prompt(31)]
        for ids, states_TD in zip(prompts, hidden(loaded, prompts, [0, 0, 0]), strict=True):
            assert (states_TD - expected(oracle, ids)).abs().max() < MAX_ERROR


def test_chunks_are_gathered_as_one_prompt() -> None:
    """For every kind of pooling, however a prompt was cut."""
    states_TD = torch.randn(37, 8)
    wanted = {
        "cls": states_TD[:1],
        "last": states_TD[-1:],
        "mean": states_TD.mean(0, keepdim=True),
        "none": states_TD,
    }
    for kind, expected_ND in wanted.items():
        for cuts in ([37], [16, 21], [1] * 37, [36, 1]):
            gathered, start = Gathered(kind), 0  # type: ignore[arg-type]  # the keys are the kinds
            for count in cuts:
                gathered.add(states_TD[start : start + count], start)
                start += count
            torch.testing.assert_close(gathered.result(37), expected_ND)


def test_what_the_cache_had_is_missed_unless_the_last_token_stands_for_all() -> None:
    for kind in ("cls", "mean", "none"):
        gathered = Gathered(kind)  # type: ignore[arg-type]  # as above
        gathered.add(torch.ones(5, 4), 16)
        with pytest.raises(RequestError, match="5 of 21"):
            gathered.result(21)
    gathered = Gathered("last")
    gathered.add(torch.ones(5, 4), 16)
    assert gathered.result(21).tolist() == [[1.0] * 4]
