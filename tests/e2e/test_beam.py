"""Beam search over the real engine against that of transformers: tiny random weights, the same beams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fakes import byte_tokenizer
from local_engine import LocalEngine
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Event
from octavo.engine.beam import BeamGeneration
from octavo.engine.frontend import Caller, Delta, Frontend

VOCAB = 131
EOS = 99
"""A token that this model often finds likely: many beams end early, at different lengths."""
PROMPTS = [[(11 * start + 5 * i) % VOCAB for i in range(3 + 9 * start)] for start in range(4)]


class SteppedClient:
    """A client whose engine runs each request to its end as it comes."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.ready = engine.ready
        self.num_requests = 0

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.num_requests += 1
        self.engine.run([request])
        for out in self.engine.outs.pop(request.id):
            yield out
        yield self.engine.ends[request.id]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, LocalEngine]]:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.3, bos_token_id=None, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    oracle = transformers.LlamaForCausalLM(config).eval()
    folder: Path = tmp_path_factory.mktemp("beam")
    oracle.save_pretrained(folder)
    yield oracle, LocalEngine(folder, load_format="safetensors")


def ours(engine: LocalEngine, prompt: list[int], penalty: float, **options: Any) -> list[Delta]:
    client = SteppedClient(engine)
    frontend = Frontend(client, byte_tokenizer())  # type: ignore[arg-type]
    params = SamplingParams(temperature=0.0, **options)
    requests = frontend.build(prompt, params, Caller(), f"b{penalty}-{options}-{prompt}")
    ends = () if params.ignore_eos else (EOS,)
    requests = [Request(**{**_fields(one), "eos_token_ids": ends}) for one in requests]

    async def collect() -> list[Delta]:
        generation = BeamGeneration(frontend, requests, penalty)
        return [delta async for delta in generation]

    return asyncio.run(collect())


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


def theirs(
    oracle: Any, prompt: list[int], width: int, length: int, penalty: float, ignore_eos: bool
) -> list[tuple[list[int], float]]:
    with torch.no_grad():
        out = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width, num_return_sequences=width, max_new_tokens=length, do_sample=False,
            length_penalty=penalty, early_stopping=False, output_scores=True,
            return_dict_in_generate=True, eos_token_id=None if ignore_eos else EOS, pad_token_id=0,
        )  # fmt: skip
    texts = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        tokens = row[len(prompt) :]
        if not ignore_eos and EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        texts.append((tokens, score))
    return texts


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [2, 5])
def test_beams_are_those_of_the_reference(models: Any, width: int, penalty: float) -> None:
    oracle, engine = models
    num_stopped = 0
    for prompt in PROMPTS:
        for ignore_eos in (False, True):
            expected = theirs(oracle, prompt, width, 12, penalty, ignore_eos)
            deltas = ours(engine, prompt, penalty, n=width, max_tokens=12, ignore_eos=ignore_eos)
            found: dict[int, list[int]] = {}
            for delta in deltas:
                found.setdefault(delta.index, []).extend(delta.token_ids)
                if delta.finish_reason == "stop":
                    num_stopped += 1
            assert [found[index] for index in range(width)] == [ids for ids, _ in expected]
    assert num_stopped or penalty > 1, "no beam ended by itself: the case tests too little"


def test_logprobs_of_beams_add_up_to_their_score(models: Any) -> None:
    oracle, engine = models
    prompt = [3, 1, 4, 1, 5]
    expected = theirs(oracle, prompt, 3, 8, 1.0, True)
    deltas = ours(engine, prompt, 1.0, n=3, max_tokens=8, logprobs=2, ignore_eos=True)
    told = [delta for delta in deltas if delta.logprobs]
    for delta, (ids, score) in zip(told, expected, strict=True):
        assert delta.logprobs is not None
        assert [row.token_ids[0] for row in delta.logprobs] == ids
        mean = sum(row.logprobs[0] for row in delta.logprobs) / 8
        assert mean == pytest.approx(score, abs=1e-4)
        assert all(len(row.token_ids) == 3 and row.rank >= 1 for row in delta.logprobs)
