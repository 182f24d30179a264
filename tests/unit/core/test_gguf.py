"""GGUF headers: what they may say, and that nothing else is believed. Mutants are tests/security/test_s14's."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hostile.fuzz_headers import KEYS, TENSORS, Writer, gguf_file
from octavo.core.errors import ModelError
from octavo.core.gguf import Header, is_gguf, parse, read_header, read_parts

LAST = len(TENSORS) - 1


def header(keys: Any = KEYS, tensors: Any = TENSORS, **changes: Any) -> Header:
    return parse(bytes(gguf_file(keys, tensors, **changes).raw), "x.gguf")


def test_a_whole_file() -> None:
    found = header()
    assert found.metadata["llama.attention.head_count_kv"] == (1, 1)
    assert found.metadata["tokenizer.ggml.add_bos_token"] is True
    assert found.metadata["llama.rope.freq_base"] == 10000.0
    table = found.tensors["token_embd.weight"]
    assert (table.shape, table.kind, table.num_bytes) == ((8, 32), "Q8_0", 8 * 34)
    assert table.offset % 32 == 0
    assert header(version=2).metadata == found.metadata


def changed(index: int, name: str = "", shape: Any = None, kind: int | None = None) -> Any:
    tensors = list(TENSORS)
    old = tensors[index]
    tensors[index] = (name or old[0], shape or old[1], old[2] if kind is None else kind)
    return tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "GGUF version 1; versions 2 and 3 are read"),
        ({"version": 3 << 24}, "big-endian; only little-endian"),
        ({"num_keys": 1 << 63}, "claims 9223372036854775808 metadata keys; at most 65536"),
        ({"num_keys": 60_000}, r"claims 60000 metadata keys, and the file has \d+ bytes"),
        ({"num_tensors": (1 << 64) - 1}, "claims 18446744073709551615 tensors"),
        ({"keys": [*KEYS, KEYS[0]]}, "'general.architecture' is there twice"),
        ({"keys": [("general.alignment", 0)]}, "general.alignment is 0; expected a power of two"),
        ({"keys": [("general.alignment", 48)]}, "general.alignment is 48"),
        ({"keys": [("a", b"\xff")]}, "the value of 'a' is not UTF-8"),
        ({"keys": [("a", ["b", b"\xff"])]}, "'a' holds a string that is not UTF-8"),
        ({"tensors": [*TENSORS, TENSORS[0]]}, "'token_embd.weight' is there twice"),
        ({"tensors": changed(0, shape=(32, 0))}, r"shape \[0, 32\]; expected 1 to 2\^48 values"),
        ({"tensors": changed(0, shape=(1 << 32, 1 << 32))}, r"expected 1 to 2\^48 values"),
        ({"tensors": changed(0, shape=(1 << 63, 2))}, r"expected 1 to 2\^48 values"),
        ({"tensors": changed(0, shape=(1, 1, 1, 1, 1))}, "has 5 dimensions; expected 1 to 4"),
        ({"tensors": changed(0, shape=(33, 8))}, "rows of 33 values; Q8_0 has blocks of 32"),
        ({"tensors": changed(0, kind=10)}, "'token_embd.weight' is Q2_K; F32, F16, BF16, Q4_0"),
        ({"tensors": changed(0, kind=99)}, "'token_embd.weight' is type 99"),
        ({"tensors": changed(0, name="x" * 300)}, "a tensor's name at byte .* claims 300 bytes"),
        ({"offsets": {LAST: 33}}, "begins at 33; expected a multiple of 32"),
        ({"offsets": {LAST: 0}}, "'token_embd.weight' and 'rope_freqs.weight' overlap|overlap"),
        ({"offsets": {LAST: 1 << 20}}, r"would end at byte \d+, and the file has"),
        ({"offsets": {LAST: (1 << 64) - 32}}, r"would end at byte \d+, and the file has"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        header(**changes)
    assert caught.value.code == "E-MODEL-07"
    assert caught.value.message.startswith("x.gguf: ")
    assert caught.value.fix


def one_array(kind: int, count: int, data: bytes = b"") -> bytes:
    writer = Writer()
    writer.raw += b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    writer.text("a")
    writer.raw += struct.pack("<IIQ", 9, kind, count) + data
    return bytes(writer.raw)


@pytest.mark.parametrize("kind", range(13))
@pytest.mark.parametrize("count", [1 << 10, 1 << 24, (1 << 24) + 1, 1 << 61, (1 << 64) - 1])
def test_no_count_is_believed(kind: int, count: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"claims \d+ values"):
            parse(one_array(kind, count, bytes(64)), "x.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_arrays_within_arrays_have_an_end() -> None:
    nested = struct.pack("<IQ", 9, 1) * 2 + struct.pack("<IQ", 4, 1) + struct.pack("<I", 7)
    found = parse(one_array(9, 1, nested), "x.gguf")
    assert found.metadata == {"a": ((((7,),),),)}
    with pytest.raises(ModelError, match="arrays within arrays, more than 4 deep"):
        parse(one_array(9, 1, struct.pack("<IQ", 9, 1) * 10_000), "x.gguf")
    with pytest.raises(ModelError, match="the truth value 2; expected 0 or 1"):
        parse(one_array(7, 2, b"\x01\x02"), "x.gguf")
    with pytest.raises(ModelError, match="an array of the value type 13; expected 0 to 12"):
        parse(one_array(13, 0), "x.gguf")


@pytest.mark.parametrize("raw", [b"", b"GG", b"\x00" * 64, b"PK\x03\x04" + bytes(60)])
def test_other_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="expected a GGUF file|expected b'GGUF'"):
        read_header(path)


def test_every_cut_is_refused() -> None:
    whole = bytes(gguf_file(KEYS, TENSORS).raw)
    for size in range(4, len(whole), 7):
        with pytest.raises(ModelError):
            parse(whole[:size], "x.gguf")


def test_paths(tmp_path: Path) -> None:
    assert is_gguf(tmp_path / "Model.GGUF")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(tmp_path / "folder.gguf")
    assert not is_gguf(tmp_path)
    blob = tmp_path / "sha256-0123"
    assert not is_gguf(blob)
    blob.write_bytes(gguf_file(KEYS, TENSORS).raw)
    assert is_gguf(blob)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_parts(tmp_path / "missing.gguf")
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_file([*KEYS, ("split.count", 3)], TENSORS).raw)
    with pytest.raises(ModelError, match=r"split.count is 3; expected .* x-00001-of-00002.gguf"):
        read_parts(path)
