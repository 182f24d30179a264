from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fake_device import FakeDevice
from octavo.core.errors import ConfigError, ModelError
from octavo.engine.carrier import WeightCarrier
from octavo.layers.build import Weight
from octavo.models.load import load_model
from octavo.models.weights import Filling, fill_dummy, load_weights

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 11,
    "torch_dtype": "bfloat16",
}


def make_weights() -> dict[str, Weight]:
    merged = torch.full((5, 4), torch.nan)
    return {
        "a.weight": Weight(merged[:2], "normal"),
        "b.weight": Weight(merged[2:], "normal"),
        "n.weight": Weight(torch.full((4,), torch.nan), "ones"),
    }


def make_tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.randn(2, 4),
        "b.weight": torch.randn(3, 4),
        "n.weight": torch.randn(4),
    }


def save_split(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, folder / f"part-{i}.safetensors")
        weight_map[name] = f"part-{i}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("is_split", [False, True])
def test_every_tensor_lands_in_its_place(tmp_path: Path, is_split: bool) -> None:
    weights, tensors = make_weights(), make_tensors()
    tensors["b.weight"] = tensors["b.weight"].bfloat16()
    if is_split:
        save_split(tmp_path, tensors)
    else:
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(2)}
        save_file({**tensors, **extra}, tmp_path / "model.safetensors")
    shares: list[float] = []
    load_weights(tmp_path, weights, {}, Filling(shares.append))
    for name, tensor in tensors.items():
        assert torch.equal(weights[name].tensor, tensor.float())
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_problems_are_listed_together(tmp_path: Path) -> None:
    tensors = make_tensors()
    del tensors["n.weight"]
    tensors["a.weight"] = torch.randn(2, 5)
    tensors["b.weight"] = torch.ones(3, 4, dtype=torch.int8)
    tensors["c.weight"] = torch.randn(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_weights(tmp_path, make_weights(), {})
    for words in (
        "a.weight: has shape [2, 5], the config asks for [2, 4]",
        "b.weight: has dtype torch.int8",
        "c.weight: not part of this architecture",
        "n.weight: missing",
    ):
        assert words in str(caught.value)


def test_repeated_tensor(tmp_path: Path) -> None:
    tensors = make_tensors()
    save_split(tmp_path, tensors)
    save_file({k: tensors[k] for k in ("a.weight", "b.weight")}, tmp_path / "part-0.safetensors")
    with pytest.raises(ModelError, match=r"b\.weight: in more than one file"):
        load_weights(tmp_path, make_weights(), {})


def test_tied_copy_must_be_equal(tmp_path: Path) -> None:
    tensors = make_tensors()
    aliases = {"head.weight": "a.weight"}
    save_file(
        tensors | {"head.weight": tensors["a.weight"].clone()}, tmp_path / "model.safetensors"
    )
    load_weights(tmp_path, make_weights(), aliases)
    save_file(tensors | {"head.weight": tensors["a.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"head\.weight: differs from a\.weight"):
        load_weights(tmp_path, make_weights(), aliases)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="loads safetensors and GGUF"):
        raise_with_fix(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(tmp_path, make_weights(), {})
    for target in ("../model.safetensors", "gone.safetensors"):
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": target}}))
        with pytest.raises(ModelError, match="no file of that folder"):
            load_weights(tmp_path, make_weights(), {})


def raise_with_fix(folder: Path) -> None:
    try:
        load_weights(folder, make_weights(), {})
    except ModelError as error:
        raise ModelError(error.fix) from error


def test_dummy_weights_follow_the_seed() -> None:
    def draw(seed: int) -> dict[str, torch.Tensor]:
        weights = make_weights()
        weights["wide.weight"] = Weight(torch.empty(2200, 2048), "normal")
        weights["b.bias"] = Weight(torch.full((3,), torch.nan), "zeros")
        fill_dummy(weights, seed)
        return {name: weight.tensor for name, weight in weights.items()}

    one, again, other = draw(1), draw(1), draw(2)
    for name, tensor in one.items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor, again[name])
    assert not torch.equal(one["a.weight"], other["a.weight"])
    assert not torch.equal(one["a.weight"], one["b.weight"][:2])
    assert torch.equal(one["n.weight"], torch.ones(4))
    assert torch.equal(one["b.bias"], torch.zeros(3))
    assert abs(one["wide.weight"].std().item() - 0.02) < 1e-4


def test_load_model_from_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shares: list[float] = []
    loaded = load_model(
        tmp_path,
        dtype="float16",
        load_format="dummy",
        kernels={"attention": "reference"},
        filling=Filling(shares.append),
    )
    assert loaded.dtype == "float16"
    assert shares[-1] == 1.0
    assert not loaded.model.weight_map()
    assert {c.winner for c in loaded.choices if c.op == "attention"} == {"reference"}
    assert [group.layers for group in loaded.groups] == [(0,)]
    assert loaded.model.logits(torch.randn(2, 16).half()).isfinite().all()
    with pytest.raises(ConfigError, match="float64"):
        load_model(tmp_path, dtype="float64", load_format="dummy")


def test_a_whole_parameter_becomes_the_mapped_file(tmp_path: Path) -> None:
    """No copy where the dtype is the file's; a merged part, a vector and another dtype are copied."""
    table, merged, single = torch.empty(3, 4), torch.empty(5, 4), torch.empty(2, 4)
    weights = {
        "table": Weight(table, "normal"),
        "part": Weight(merged[:2], "normal"),
        "rest": Weight(merged[2:], "normal"),
        "single": Weight(single[:2], "normal"),
        "vector": Weight(torch.empty(4), "ones"),
        "wide": Weight(torch.empty(2, 4), "normal"),
    }
    places = {name: weight.tensor.data_ptr() for name, weight in weights.items()}
    tensors = {name: torch.randn(weight.tensor.shape) for name, weight in weights.items()}
    tensors["wide"] = tensors["wide"].bfloat16()
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(tmp_path, weights, {})
    for name, weight in weights.items():
        assert torch.equal(weight.tensor, tensors[name].float()), name
    moved = {name for name, weight in weights.items() if weight.tensor.data_ptr() != places[name]}
    assert moved == {"table", "single"}
    assert torch.equal(single, tensors["single"])  # what the layer holds, of which it noted a slice
    # The mapping is private: writing to the parameter leaves the file alone.
    table.zero_()
    again = {"table": Weight(torch.empty(3, 4), "normal")}
    with pytest.raises(ModelError, match="part: not part of this architecture"):
        load_weights(tmp_path, again, {})
    assert torch.equal(again["table"].tensor, tensors["table"])


def test_a_carrier_brings_what_is_not_mapped(tmp_path: Path) -> None:
    tensors = make_tensors()
    save_split(tmp_path, tensors)
    carrier = WeightCarrier(FakeDevice(), piece_bytes=16)
    weights = make_weights()
    load_weights(tmp_path, weights, {}, Filling(carrier=carrier))
    for name, tensor in tensors.items():
        assert torch.equal(weights[name].tensor, tensor)
    carrier.close()
