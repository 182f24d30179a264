"""What a folder says about pooling is honoured or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.core.errors import ConfigError, ModelError
from octavo.models.facts import ModelFacts, read_facts

BERT = {
    "architectures": ["BertModel"],
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
MODERN = {**BERT, "architectures": ["ModernBertModel"]}
CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"]}
DECODER = {
    **BERT,
    "architectures": ["Qwen3ForCausalLM"],
    "rms_norm_eps": 1e-6,
    "head_dim": 8,
}
STEPS = ("Transformer", "Pooling", "Dense", "Normalize")


def write(folder: Path, config: dict[str, Any], *steps: str, **files: Any) -> Path:
    """A folder with a modules.json of `steps`; `files` are the configs of Pooling and Dense, and others' names."""
    (folder / "config.json").write_text(json.dumps(config))
    if steps:
        rows = [
            {"idx": i, "path": f"{i}_{step}" if i else "", "type": f"st.models.{step}"}
            for i, step in enumerate(steps)
        ]
        (folder / "modules.json").write_text(json.dumps(rows))
    for i, step in enumerate(steps):
        if step in files:
            place = folder / f"{i}_{step}"
            place.mkdir()
            (place / "config.json").write_text(json.dumps(files.pop(step)))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def spec(folder: Path, **options: Any) -> Any:
    facts: ModelFacts = read_facts(folder, **options)
    return facts.pooling


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"embedding_dimension": 16}, "mean"),
    ],
)
def test_kinds(tmp_path: Path, pooling: dict[str, Any], kind: str) -> None:
    found = spec(write(tmp_path, BERT, "Transformer", "Pooling", Pooling=pooling))
    assert found.kind == kind and not found.normalizes
    assert "1_Pooling" in found.reason


def test_the_longest_prompt_and_the_norm(tmp_path: Path) -> None:
    files = {"Pooling": {"pooling_mode": "mean"}, "sentence_bert_config": {"max_seq_length": 33}}
    found = spec(write(tmp_path, BERT, "Transformer", "Pooling", "Normalize", **files))
    assert found.normalizes and found.max_tokens == 33


@pytest.mark.parametrize(
    ("steps", "files", "cause"),
    [
        (STEPS[:2], {"Pooling": {"pooling_mode": "max"}}, "pooling_mode is 'max'"),
        (STEPS[:2], {"Pooling": {"pooling_mode": ["cls", "mean"]}}, "pooling_mode"),
        (STEPS[:2], {"Pooling": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        (STEPS[:2], {}, "1_Pooling"),
        (("Transformer", "WordWeights"), {}, "st.models.WordWeights"),
        (("Transformer", "Dense"), {"Dense": {"in_features": 16, "out_features": 4}}, "st.models.Dense"),
        (STEPS, {"Pooling": {}, "Dense": {"in_features": 9, "out_features": 4}}, "in_features is 9"),
        (STEPS, {"Pooling": {}, "Dense": {"in_features": 16, "out_features": 4, "activation_function": "x.Foo"}}, "x.Foo"),
        (STEPS, {"Pooling": {}, "Dense": {"in_features": 16, "out_features": 4}}, "no model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(
    tmp_path: Path, steps: tuple[str, ...], files: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ModelError) as caught:
        spec(write(tmp_path, BERT, *steps, **files))
    assert cause in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", "[" * 5000, "no", json.dumps([{}] * 17)])
def test_a_bad_list_of_modules(tmp_path: Path, text: str) -> None:
    write(tmp_path, BERT)
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match="modules.json"):
        spec(tmp_path)


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, BERT)
    row = {"path": "../elsewhere", "type": "st.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([row]))
    with pytest.raises(ModelError, match="path is '../elsewhere'"):
        spec(tmp_path)


def test_runner(tmp_path: Path) -> None:
    assert spec(write(tmp_path, DECODER)) is None
    asked = spec(tmp_path, runner="pooling")
    assert asked.kind == "last" and asked.normalizes and asked.tasks == ("embed", "token_embed")
    write(tmp_path, DECODER, "Transformer", "Pooling", Pooling={"pooling_mode": "lasttoken"})
    facts = read_facts(tmp_path)
    assert facts.pooling is not None and facts.network != read_facts(tmp_path, "generate").network
    assert read_facts(tmp_path, "generate").pooling is None
    with pytest.raises(ConfigError, match="--runner generate"):
        spec(write(tmp_path, CLASSIFIER), runner="generate")


@pytest.mark.parametrize(
    ("keys", "output"),
    [
        ({}, "softmax"),
        ({"id2label": {"0": "yes"}}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, "sigmoid"),
    ],
)
def test_what_makes_probabilities(tmp_path: Path, keys: dict[str, Any], output: str) -> None:
    assert spec(write(tmp_path, CLASSIFIER | keys)).output == output


@pytest.mark.parametrize(
    ("config", "keys", "param"),
    [
        (CLASSIFIER, {"problem_type": "guess"}, "problem_type"),
        (CLASSIFIER, {"sbert_ce_default_activation_function": "os.system"}, "sbert_ce_default_activation_function"),
        (CLASSIFIER, {"id2label": {"1": "a"}}, "id2label"),
        (BERT, {"matryoshka_dimensions": 5}, "matryoshka_dimensions"),
        (BERT, {"hidden_act": "swish"}, "hidden_act"),
        (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (BERT, {"is_decoder": True}, "is_decoder"),
        (BERT, {"num_attention_heads": 3}, "num_attention_heads"),
        (MODERN, {"hidden_activation": "silu"}, "hidden_activation"),
        (MODERN, {"layer_types": ["full_attention", "chunked"]}, "layer_types"),
        (MODERN, {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
    ],
)  # fmt: skip
def test_wrong_configs_name_the_key(
    tmp_path: Path, config: dict[str, Any], keys: dict[str, Any], param: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_facts(write(tmp_path, config | keys))
    assert caught.value.param == param
