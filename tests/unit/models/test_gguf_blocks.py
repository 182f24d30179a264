"""Blocks of every quantized type: values equal the reference's, to the last bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from octavo.core.gguf import KIND_NAMES, READ_KINDS
from octavo.models.gguf_blocks import DECODERS
from octavo.models.gguf_config import FLOAT_KINDS


def test_every_type_that_is_read_has_a_decoder() -> None:
    assert set(READ_KINDS) == set(DECODERS) | set(FLOAT_KINDS)
    assert set(READ_KINDS) <= set(KIND_NAMES.values())


def test_names_and_sizes_are_the_formats() -> None:
    for kind in GGMLQuantizationType:
        assert KIND_NAMES.get(int(kind), kind.name) == kind.name
    for name, sizes in READ_KINDS.items():
        assert tuple(sizes) == gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_any_bytes_decode_as_in_the_reference(name: str) -> None:
    rng = np.random.default_rng(3)
    kind = READ_KINDS[name]
    blocks = rng.integers(0, 256, (600, kind.block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        found = DECODERS[name](blocks)
        expected = gguf.dequantize(blocks, GGMLQuantizationType[name])
    assert found.dtype == np.float32
    assert found.shape == (600, kind.block_values)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    assert np.isfinite(found).mean() > 0.5


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_1"])
def test_what_was_quantized_comes_back(name: str) -> None:
    values = np.random.default_rng(4).normal(size=(32, 256)).astype(np.float32)
    packed = gguf.quantize(values, GGMLQuantizationType[name])
    found = DECODERS[name](packed.reshape(-1, READ_KINDS[name].block_bytes)).reshape(values.shape)
    worst = {"Q8_0": 0.02, "Q4_0": 0.6, "Q5_1": 0.2}[name]
    assert np.abs(found - values).max() < worst
