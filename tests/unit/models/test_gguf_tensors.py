"""A GGUF file gives the facts and the weights that the folder it was made of gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from msgspec.structs import replace

from gguf_files import GgufFile, add_tokenizer, from_folder, read_folder, write_folder
from octavo.core.assets import bundled, model_folder
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import ModelError
from octavo.models import gguf_tensors
from octavo.models.facts import read_facts
from octavo.models.gguf_config import STRETCHED, _divisors
from octavo.models.gguf_tensors import GgufTensors, model_name

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "architectures": ["LlamaForCausalLM"]},
    "llama-biases": {
        **SMALL, "architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True, "head_dim": 8,
    },
    "mistral": {**SMALL, "architectures": ["MistralForCausalLM"], "sliding_window": 32, "head_dim": 32},
    "qwen2": {**SMALL, "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {**SMALL, "architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_facts_and_weights_are_those_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS[name])
    path = from_folder(folder, tmp_path / "model.gguf")
    assert replace(read_facts(path), parts=()) == read_facts(folder)
    _, weights = read_folder(folder)
    with GgufTensors(path) as file:
        assert set(file.keys()) == set(weights)
        for key, tensor in weights.items():
            assert torch.equal(file.get_tensor(key), tensor), key


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q5_1])
def test_stored_types(tmp_path: Path, kind: Kind) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["llama"])
    path = from_folder(folder, tmp_path / "model.gguf", kind)
    dtype = {Kind.F16: "float16"}.get(kind, "bfloat16")
    assert read_facts(path).dtype == dtype
    _, weights = read_folder(folder)
    with GgufTensors(path) as file:
        for name, tensor in weights.items():
            found = file.get_tensor(name)
            if tensor.ndim == 1:
                assert torch.equal(found, tensor), name
                continue
            assert found.dtype == getattr(torch, dtype)
            # Rounded per row and block, so the order of rows does not matter.
            kept = gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind)
            assert torch.equal(found, torch.from_numpy(np.ascontiguousarray(kept)).to(found.dtype))


def test_transformers_reads_the_same_weights(tmp_path: Path) -> None:
    """The order of rows of queries and keys is a convention; here is another reader of it."""
    from transformers import AutoModelForCausalLM

    folder = write_folder(tmp_path / "model", CONFIGS["llama"])
    path = from_folder(folder, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=path.name, dtype=torch.float32
    )
    other = model.state_dict()
    with GgufTensors(path) as file:
        for name in list(file.keys()):
            assert torch.equal(file.get_tensor(name), other[name]), name


def test_large_matrices_are_decoded_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["qwen3"])
    path = from_folder(folder, tmp_path / "model.gguf", Kind.Q8_0)
    with GgufTensors(path) as file:
        whole = {name: file.get_tensor(name) for name in list(file.keys())}
    monkeypatch.setattr(gguf_tensors, "CHUNK_VALUES", 96)
    with GgufTensors(path) as file:
        assert all(torch.equal(file.get_tensor(name), whole[name]) for name in whole)


def test_a_model_in_parts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["qwen3"])
    config, weights = read_folder(folder)
    names = sorted(weights)
    for number in (0, 1):
        file = GgufFile(tmp_path / f"m-0000{number + 1}-of-00002.gguf", config)
        file.writer.add_uint16("split.count", 2)
        file.writer.add_uint16("split.no", number)
        file.add({name: weights[name] for name in names[number::2]}, Kind.F32)
        path = file.write()
    with GgufTensors(path.with_name("m-00001-of-00002.gguf")) as opened:
        assert all(torch.equal(opened.get_tensor(name), weights[name]) for name in names)
    with pytest.raises(ModelError, match=r"is part 00002 of 2") as caught:
        read_facts(path)
    assert "first part" in caught.value.fix
    path.unlink()
    with pytest.raises(ModelError, match="00002-of-00002"):
        read_facts(path.with_name("m-00001-of-00002.gguf"))
    shutil.copy(path.with_name("m-00001-of-00002.gguf"), path)
    with pytest.raises(ModelError, match=r"split\.no is not 1"):
        read_facts(path.with_name("m-00001-of-00002.gguf"))


def small_file(tmp_path: Path, **metadata: Any) -> Path:
    folder = write_folder(tmp_path / "model", CONFIGS["llama"])
    config, weights = read_folder(folder)
    file = GgufFile(tmp_path / "model.gguf", config, **metadata)
    file.add(weights, Kind.F32)
    return file.write()


def test_rope_scaling(tmp_path: Path) -> None:
    path = small_file(
        tmp_path, rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=4.0
    )
    rope = read_facts(path).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 4.0, 5000.0)
    path = small_file(
        tmp_path,
        rope_scaling_type=gguf.RopeScalingType.YARN,
        rope_scaling_factor=4.0,
        rope_scaling_orig_ctx_len=128,
    )
    rope = read_facts(path).rope
    assert (rope.kind, rope.factor, rope.original_max_position) == ("yarn", 4.0, 128)
    path = small_file(tmp_path, rope_scaling_type=gguf.RopeScalingType.LONGROPE)
    with pytest.raises(ModelError, match="rope.scaling.type is 'longrope'"):
        read_facts(path)


def test_stretched_frequencies_are_recognized_or_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": STRETCHED["original_max_position"], "rope_theta": 500000.0,
    }  # fmt: skip
    oracle = LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131072,
        rope_theta=500000.0, rope_scaling=scaling,
    )  # fmt: skip
    scaled = ROPE_INIT_FUNCTIONS["llama3"](oracle, "cpu")[0].double().numpy()
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    divisors = (plain / scaled).astype(np.float32)
    assert np.allclose(divisors, _divisors(8.0, 128, 500000.0), rtol=1e-5)
    folder = write_folder(
        tmp_path / "model", CONFIGS["llama"] | {"head_dim": 128, "rope_theta": 500000.0}
    )
    config, weights = read_folder(folder)
    for values in (divisors, divisors * 1.01):
        file = GgufFile(tmp_path / "model.gguf", config)
        file.add(weights, Kind.F32)
        file.writer.add_tensor("rope_freqs.weight", values)
        path = file.write()
        if values is divisors:
            rope = read_facts(path).rope
            assert (rope.kind, rope.factor, rope.high_freq_factor) == ("llama3", 8.0, 4.0)
            assert rope.original_max_position == 8192
            with GgufTensors(path) as opened:
                assert set(opened.keys()) == set(weights)
    with pytest.raises(ModelError, match="does not follow from one factor"):
        read_facts(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_count": 8}, r"expert_count is 8; expected 0"),
        ({"rope_dimension_count": 8}, r"rope.dimension_count is 8; expected 16"),
        ({"value_length": 32}, r"value_length is 32; expected 16"),
        ({"head_count": 0}, r"head_count is 0; expected an integer of at least 1"),
        ({"head_count_kv": [1, 2]}, r"expected the same number above 0 for every layer"),
        ({"embedding_length": 32}, r"token_embd.weight is of shape \[64, 64\]"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, metadata: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", _replacing(gguf.GGUFWriter.add_key_value))
    with pytest.raises(ModelError, match=message):
        read_facts(small_file(tmp_path, **metadata))


def _replacing(original: Any) -> Any:
    """A key given a second time takes the place of the first."""

    def add(self: Any, key: str, *args: Any, **named: Any) -> None:
        self.kv_data[0].pop(key, None)
        original(self, key, *args, **named)

    return add


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "qwen4")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"'qwen4'; of GGUF files llama, qwen2, qwen3 are read"):
        read_facts(tmp_path / "x.gguf")


def test_tensors_nobody_knows_keep_their_name() -> None:
    assert model_name("blk.3.ffn_gate_exps.weight") == "blk.3.ffn_gate_exps.weight"
    assert model_name("blk.3.attn_q_norm.weight") == "model.layers.3.self_attn.q_norm.weight"


def test_a_model_is_a_file_a_folder_or_a_name(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    assert model_folder(str(path)) == path
    with pytest.raises(ModelError, match="folder of GGUF files") as caught:
        model_folder(str(tmp_path))
    assert "model.gguf" in caught.value.fix
    with pytest.raises(ModelError, match="nor a GGUF file"):
        model_folder(str(tmp_path / "other.gguf"))


def test_the_bundled_model(tmp_path: Path) -> None:
    folder = bundled()[BUNDLED_MODEL]
    config, weights = read_folder(folder)
    file = GgufFile(tmp_path / "mini.gguf", config)
    add_tokenizer(file.writer, folder, "qwen2")
    file.add(weights, Kind.BF16)
    assert replace(read_facts(file.write()), parts=()) == read_facts(folder)
