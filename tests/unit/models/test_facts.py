from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.core.errors import ModelError
from octavo.models.facts import ModelFacts, read_facts

# https://huggingface.co/Qwen/Qwen3-0.6B, config.json
QWEN3_SMALL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# https://huggingface.co/mistralai/Mistral-7B-v0.1, config.json
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def read(folder: Path, base: dict[str, Any] = QWEN3_SMALL, **changes: Any) -> ModelFacts:
    data = {key: value for key, value in {**base, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(data))
    return read_facts(folder)


def test_a_real_config(tmp_path: Path) -> None:
    facts = read(tmp_path)
    assert (facts.num_layers, facts.num_heads, facts.num_kv_heads, facts.head_dim) == (
        28,
        16,
        8,
        128,
    )
    assert facts.rope.kind == "default"
    assert facts.rope.theta == 1e6
    assert facts.dtype == "bfloat16"
    assert facts.windows == (None,) * 28
    assert facts.qk_norm
    assert facts.is_tied
    assert not facts.qkv_bias
    # 0.6B as the model card counts it, the tied table once.
    assert facts.num_parameters == 596_049_920
    assert facts.weight_bytes("bfloat16") == 2 * 596_049_920
    assert facts.max_context == 40960


def test_known_parameter_count_with_window(tmp_path: Path) -> None:
    facts = read(tmp_path, MISTRAL)
    # The sum of the checkpoint's tensors: 14,483,464,192 bytes in bfloat16 (model.safetensors.index.json, total_size).
    assert facts.weight_bytes("bfloat16") == 14_483_464_192
    assert set(facts.windows) == {4096}
    assert {spec.kind for spec in facts.kv_specs("float32")} == {"window"}
    assert set(read(tmp_path, MISTRAL, sliding_window=None).windows) == {None}
    assert set(read(tmp_path, MISTRAL, sliding_window="absent").windows) == {4096}


def test_activation_estimate_moves(tmp_path: Path) -> None:
    facts = read(tmp_path)
    base = facts.activation_bytes(64, "float32")
    assert facts.activation_bytes(128, "float32") > base
    assert facts.activation_bytes(64, "bfloat16") < base
    more = facts.activation_bytes(64, "float32", num_logits=3)
    assert more - base == 2 * facts.vocab_size * 8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (None,) * 4),
        ({"use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 99)),
        ({"use_sliding_window": True, "max_window_layers": 0}, (99,) * 4),
        ({"use_sliding_window": True, "max_window_layers": "absent"}, (None,) * 4),
        (
            {
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (99, None, 99, None),
        ),
        ({"layer_types": ["full_attention"] * 4}, (None,) * 4),
    ],
)
def test_windows(tmp_path: Path, changes: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    facts = read(tmp_path, **{"num_hidden_layers": 4, "sliding_window": 99, **changes})
    assert facts.windows == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {
            "rope_scaling": "absent",
            "rope_theta": "absent",
            "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e6},
        },
    ],
)
def test_old_and_new_rope_keys_agree(tmp_path: Path, changes: dict[str, Any]) -> None:
    rope = read(tmp_path, **changes).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 2.0, 1e6)


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling=YARN).max_context == 131072
    longer = read(tmp_path, rope_scaling=YARN, max_position_embeddings=200000)
    assert longer.max_context == 200000


def test_head_dim(tmp_path: Path) -> None:
    assert read(tmp_path, head_dim="absent").head_dim == 128
    assert read(tmp_path, head_dim=None).head_dim == 64
    assert read(tmp_path, MISTRAL).head_dim == 128


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "absent"}, ["'hidden_size' is missing", "integer"]),
        ({"hidden_size": "1024"}, ["hidden_size is '1024'", "integer"]),
        ({"hidden_size": True}, ["hidden_size is True"]),
        ({"vocab_size": 0}, ["vocab_size is 0", "at least 1"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "at most"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads is 5", "divisor"]),
        ({"head_dim": 15}, ["head_dim is 15", "even"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings is 'yes'", "true or false"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps is -1"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["torch_dtype is 'float8_e4m3fn'", "bfloat16"]),
        ({"quantization_config": {"quant_method": "hqq"}}, ["quant_method is 'hqq'", "is read"]),
        ({"architectures": "absent"}, ["'architectures' is missing"]),
        ({"architectures": []}, ["architectures is []"]),
        ({"architectures": ["Qwen4ForCausalLM"]}, ["Qwen4ForCausalLM", "Did you mean 'Qwen"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["'longrope' is not supported", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["'factor' is missing", "rope_scaling"]),
        ({"rope_scaling": {"rope_type": "default", "spin": 1}}, ["'spin' is not known"]),
        ({"rope_scaling": [1]}, ["rope_scaling is [1]", "object"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ({"layer_types": ["sliding_attention"] * 28}, ["layer_types", "full_attention"]),
        ({"use_sliding_window": True, "layer_types": ["full_attention"]}, ["28 names"]),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, **changes)
    for word in words:
        assert word in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_facts(tmp_path)
    for text in ("{", "[1]", "[" * 100000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json"):
            read_facts(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="not JSON"):
        read_facts(tmp_path)


def test_no_torch(tmp_path: Path) -> None:
    read(tmp_path)
    code = (
        "import sys, pathlib; from octavo.models.facts import read_facts; "
        "read_facts(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, env={"PYTHONPATH": ":".join(sys.path)})
