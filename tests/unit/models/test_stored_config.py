"""What is read of quantized checkpoints' own description, and what is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from octavo.core.errors import ConfigError, ModelError
from octavo.layers.quant.asked import asked_format
from octavo.layers.quant.claim import Claim
from octavo.layers.quant.spec import Packing, StoredSpec, kept_as
from octavo.models.config import Config
from octavo.models.stored_config import read_stored

FP8_ARGS = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**FP8_ARGS, "dynamic": False, "observer": "minmax"},
            "input_activations": {**FP8_ARGS, "strategy": "token", "dynamic": True},
            "output_activations": None,
        }
    },
    "ignore": ["lm_head", "re:.*visual.*"],
    "kv_cache_scheme": None,
    "quantization_status": "compressed",
}


def spec_of(data: Any) -> StoredSpec | None:
    return read_stored(Config({"quantization_config": data}, "config.json"))


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(COMPRESSED)
    *parents, last = path.split("/")
    place = data
    for name in parents:
        place = place[name]
    place[last] = value
    return data


def test_what_is_read() -> None:
    assert spec_of(None) is None
    # https://huggingface.co/Qwen/Qwen3-8B-FP8, config.json
    qwen = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    assert spec_of(qwen | {"weight_block_size": [128, 128]}) == StoredSpec(
        method="fp8", kind="fp8", block=(128, 128)
    )
    static = spec_of(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    )
    assert static == StoredSpec(method="fp8", kind="fp8", has_fixed_rows=True, ignored=("lm_head",))
    fbgemm = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["a.b"]}
    assert spec_of(fbgemm) == StoredSpec(method="fbgemm_fp8", kind="fp8", ignored=("a.b",))
    ignored = ("lm_head", "re:.*visual.*")
    wanted = StoredSpec(method="compressed-tensors", kind="fp8", ignored=ignored)
    assert spec_of(COMPRESSED) == wanted
    assert read_stored(Config({"compression_config": COMPRESSED}, "config.json")) == wanted
    group = "config_groups/group_0"
    weights_alone = spec_of(changed(f"{group}/input_activations", None))
    assert weights_alone is not None and not weights_alone.rounds_rows and not weights_alone.form
    fixed = spec_of(changed(f"{group}/input_activations/dynamic", False))
    assert fixed is not None and fixed.has_fixed_rows


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("quant_method", "hqq", ["quant_method is 'hqq'", "'fp8'", "'gptq'"]),
        ("format", "marlin-24", ["format is 'marlin-24'", "'float-quantized'"]),
        ("format", "pack-quantized", ["input_activations is", "null, with packed weights"]),
        ("config_groups/group_0/format", "pack-quantized", ["format is 'pack-quantized'"]),
        ("format", None, ["format"]),
        ("sparsity_config", {"format": "sparse-24-bitmask"}, ["sparsity_config"]),
        ("config_groups", {}, ["config_groups is {}", "one scheme"]),
        ("config_groups", [1], ["config_groups", "an object"]),
        ("config_groups/group_0/targets", ["re:.*mlp.*"], ["targets", "Linear"]),
        ("config_groups/group_0/weights/num_bits", 4, ["num_bits is 4"]),
        ("config_groups/group_0/weights/num_bits", "8", ["num_bits is '8'"]),
        ("config_groups/group_0/weights/symmetric", False, ["symmetric is False"]),
        ("config_groups/group_0/weights/strategy", "group", ["strategy is 'group'", "channel"]),
        ("config_groups/group_0/weights/strategy", "block", ["block_structure is None"]),
        ("config_groups/group_0/weights/type", "int", ["input_activations: type is 'float'"]),
        ("config_groups/group_0/output_activations", FP8_ARGS, ["output_activations"]),
        ("ignore", ["re:("], ["ignore", "regular expressions"]),
        ("ignore", ["x" * 513], ["ignore", "at most 512 characters"]),
        ("ignore", "lm_head", ["ignore is 'lm_head'", "a list of strings"]),
    ],
)
def test_refusals_name_the_key(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        spec_of(changed(path, value))
    for word in words:
        assert word in str(caught.value)


def test_blocks_are_bounded() -> None:
    for sizes in ([128], [0, 128], [128.0, 128], "128", [1 << 17, 1]):
        with pytest.raises(ModelError, match="weight_block_size"):
            spec_of({"quant_method": "fp8", "weight_block_size": sizes})


def test_as_what_it_is_kept() -> None:
    def kept(device: str, asked: str = "", **fields: Any) -> str:
        return kept_as(StoredSpec(method="m", **fields), asked, device)

    assert kept("cuda", kind="fp8") == "fp8"
    assert kept("cuda", kind="fp8", block=(128, 128)) == "fp8_block"
    assert kept("cuda", kind="fp8", block=(1, 128)) == "fp8_block"
    assert kept("cuda", kind="fp8", block=(128, 64)) == kept("cpu", kind="fp8", block=(128, 128))
    assert kept("cuda", kind="fp8", block=(128, 64)) == ""
    assert kept("cuda", kind="fp8", block=(128, 128), rounds_rows=False) == ""
    assert kept("cuda", kind="int8", block=(128, 128)) == ""
    assert kept("cuda", kind="fp8", rounds_rows=False) == ""
    assert kept("cuda", kind="int8") == "int8_w8a8"
    assert kept("cuda", kind="int8", rounds_rows=False) == "int8"
    assert kept("cpu", kind="fp8") == ""
    assert kept("cpu", kind="int8") == "int8"
    assert kept("cpu", "int4", kind="int8") == "int4"
    assert kept_as(None, "", "cpu") == ""


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
PACKED_ARGS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def packed(**changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": PACKED_ARGS | changes, "input_activations": None}
    found = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return found | {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def packing_of(data: Any) -> Packing:
    spec = spec_of(data)
    assert spec is not None and spec.packing is not None
    return spec.packing


def test_what_is_read_of_packed_levels() -> None:
    awq = spec_of(AWQ | {"modules_to_not_convert": ["visual"], "version": "GEMM"})
    assert awq is not None and awq.form == "int4_g128_zp" and not awq.rounds_rows
    assert awq.text == "int4 (awq, scales per 128 with zero points)"
    claim = Claim(awq)
    assert not claim.is_quantized("model.xvisuals.0.up") and claim.is_quantized("model.layers.0.up")
    assert packing_of(AWQ | {"modules_to_not_convert": None, "group_size": -1}).group == 0
    assert packing_of({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}).group == 64
    assert packing_of(GPTQ) == Packing(layout="gptq", bits=4, group=128, zeros_less=1)
    assert packing_of(GPTQ | {"checkpoint_format": "gptq_v2", "format": "gptq_v2"}).zeros_less == 0
    assert packing_of(GPTQ | {"desc_act": True}).is_ordered
    for bits, group, form in ((4, 96, "int4_g32"), (4, 256, "int4_g128"), (4, -1, "int4_g128")):
        assert packing_of(GPTQ | {"bits": bits, "group_size": group}).form == form
    assert packing_of(GPTQ | {"bits": 8}).form == ""
    assert packing_of(GPTQ | {"bits": 8, "group_size": -1}).form == "int8"
    left = spec_of(GPTQ | {"dynamic": {r"-:.*\.mlp\..*": {}}})
    assert left is not None and left.ignored == (r"re:.*\.mlp\..*",)
    lists = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]
    listed = spec_of(GPTQ | {"modules_in_block_to_quantize": lists})
    assert listed is not None
    names = ("model.layers.3.self_attn.k_proj", "model.layers.3.self_attn.o_proj")
    assert [Claim(listed).is_quantized(name) for name in names] == [True, False]
    assert packing_of(packed(actorder="group")).is_ordered
    assert not packing_of(packed(actorder="weight")).is_ordered
    assert packing_of(packed(strategy="channel", group_size=None, symmetric=False)).form == (
        "int4_g128_zp"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (AWQ | {"bits": 8}, ["bits is 8", "4 is read"]),
        (AWQ | {"version": "gemv"}, ["version is 'gemv'", "'gemm'"]),
        (AWQ | {"version": "marlin"}, ["version is 'marlin'"]),
        (AWQ | {"group_size": 16}, ["group_size is 16", "a multiple of 32"]),
        (AWQ | {"group_size": 0}, ["group_size is 0"]),
        (AWQ | {"group_size": 1 << 40}, ["group_size is", "up to 1048576"]),
        (AWQ | {"zero_point": 1}, ["zero_point is 1"]),
        (GPTQ | {"bits": 3}, ["bits is 3", "4 or 8"]),
        (GPTQ | {"bits": True}, ["bits is True"]),
        (GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format is 'marlin'", "gptq_v2"]),
        (GPTQ | {"checkpoint_format": "gptq", "format": "gptq_v2"}, ["format is 'gptq_v2'"]),
        (GPTQ | {"is_marlin_format": True}, ["is_marlin_format is True"]),
        (GPTQ | {"lm_head": True}, ["lm_head is True"]),
        (GPTQ | {"pack_dtype": "int64"}, ["pack_dtype is 'int64'"]),
        (GPTQ | {"dynamic": {"+:.*": {"bits": 8}}}, ["dynamic is", "leave alone"]),
        (GPTQ | {"dynamic": {"-:(": {}}}, ["dynamic is", "regular expressions"]),
        (GPTQ | {"modules_in_block_to_quantize": ["q_proj"]}, ["modules_in_block", "lists"]),
        (packed(num_bits=2), ["num_bits is 2"]),
        (packed(type="float"), ["type is 'float'", "'int'"]),
        (packed(strategy="tensor_group"), ["strategy is 'tensor_group'"]),
        (packed(strategy="tensor"), ["strategy is 'tensor'"]),
        (packed(actorder="best"), ["actorder is 'best'"]),
        (packed(dynamic=True), ["dynamic is True"]),
    ],
)
def test_refusals_of_packed_levels_name_the_key(data: Any, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        spec_of(data)
    for word in words:
        assert word in str(caught.value)


def test_what_is_asked_beside_a_checkpoint() -> None:
    awq, fp8 = spec_of(AWQ), spec_of(COMPRESSED)
    for stored in (None, awq, fp8):
        assert asked_format(stored, "none") == asked_format(stored, "") == ""
    assert asked_format(None, "int4") == "int4" and asked_format(fp8, "int8") == "int8"
    assert asked_format(awq, "awq") == asked_format(awq, "awq_marlin") == ""
    assert asked_format(awq, "int4_g128_zp") == asked_format(fp8, "compressed-tensors") == ""
    for stored, asked in ((awq, "gptq"), (None, "awq"), (fp8, "gptq_marlin"), (awq, "int8")):
        with pytest.raises(ConfigError, match="--quantization is"):
            asked_format(stored, asked)
    with pytest.raises(ConfigError, match="unknown quantization 'awqq'"):
        asked_format(awq, "awqq")
    for device in ("cpu", "cuda"):
        assert kept_as(awq, "", device) == "int4_g128_zp"
