"""What is read of quantized checkpoints' own description, and what is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from octavo.core.errors import ModelError
from octavo.layers.quant.spec import StoredSpec, kept_as
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
        ("quant_method", "gptq", ["quant_method is 'gptq'", "'fp8'"]),
        ("format", "pack-quantized", ["format is 'pack-quantized'", "'float-quantized'"]),
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
    assert kept("cuda", kind="fp8", block=(128, 128)) == ""
    assert kept("cuda", kind="fp8", rounds_rows=False) == ""
    assert kept("cuda", kind="int8") == "int8_w8a8"
    assert kept("cuda", kind="int8", rounds_rows=False) == "int8"
    assert kept("cpu", kind="fp8") == ""
    assert kept("cpu", kind="int8") == "int8"
    assert kept("cpu", "int4", kind="int8") == "int4"
    assert kept_as(None, "", "cpu") == ""
