"""Fuzzes what reads the headers of weight files: `python -m hostile.fuzz_headers --count 1000000` under tests/.

A mutant is a whole file with one thing wrong: a bit, a count, a length, a name, an offset, a shape, a nesting. What is read
of it must be a model or an `OctavoError`; tensors that a header admits must lie within the file, each byte of them is
touched, and no mutant may take long or much memory. GGUF files go through header, config, weights and tokenizer;
safetensors files through `load_weights`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import resource
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from octavo.core.errors import OctavoError
from octavo.core.gguf import READ_KINDS, Header, parse
from octavo.layers.build import Weight
from octavo.models.facts import read_facts
from octavo.models.gguf_tensors import GgufTensors
from octavo.models.weights import load_weights
from octavo.text import gguf as tokenizers_of
from octavo.text.tokenizer import Tokenizer

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 7, 8, 24, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 10**30, 1.5, "8", None, [], {}, True,
)  # fmt: skip
SHAPES = {"a": (2, 4), "b": (3, 4), "c": (4,)}
LONGEST_S = 2.0
CHUNK = 20_000
"""Mutants between two lines of the command's output; each chunk has a seed of its own."""
MOST_BYTES = 256 << 20
"""Growth of the process over all mutants."""
HUGE = (
    0, 1, 2, 3, 31, 33, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 48) + 1,
    (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1,
)  # fmt: skip


# Safetensors


def good() -> bytes:
    return bytes(save({name: torch.zeros(shape) for name, shape in SHAPES.items()}))


def parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def joined(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_mutants(rng: random.Random, rounds: int) -> Iterator[bytes]:
    """Files that are nearly whole: a number, a name, a length or some bytes are not what they were."""
    whole = good()
    for number in range(rounds):
        header, data = parts(whole)
        name = rng.choice(list(SHAPES))
        kind = number % 8
        if kind == 0:
            header[name]["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
        elif kind == 1:
            header[name]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        elif kind == 2:
            header[name][rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(
                ("F64", "I8", "BOOL", "F4", "F8_E4M3", "", "F32" * 99, *NUMBERS)
            )
        elif kind == 3:
            other = rng.choice(list(SHAPES))
            header[name]["data_offsets"] = header[other]["data_offsets"]
        elif kind == 4:
            raw = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                raw[rng.randrange(min(len(raw), 300))] = rng.randrange(256)
            yield bytes(raw)
            continue
        elif kind == 5:
            yield whole[: rng.randrange(len(whole))]
            continue
        elif kind == 6:
            length = rng.choice([n for n in NUMBERS if isinstance(n, int) and 0 <= n < 1 << 64])
            yield joined(header, data, int(length))
            continue
        else:
            header = rng.choice(
                (
                    [],
                    None,
                    {},
                    {"__metadata__": 5},
                    {name: None},
                    {name: []},
                    {**header, "x" * 9999: header[name]},
                )
            )
        yield joined(header, data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)


def read_safetensors(raw: bytes, folder: Path) -> bool:
    """Whether the weights were read; every byte of them is touched."""
    (folder / "model.safetensors").write_bytes(raw)
    weights = {
        name: Weight(torch.full(shape, torch.nan), "normal") for name, shape in SHAPES.items()
    }
    try:
        load_weights(folder, weights, {})
    except OctavoError:
        return False
    for name, shape in SHAPES.items():
        assert weights[name].tensor.shape == shape
        weights[name].tensor.clone()
    return True


# GGUF


class Writer:
    """Bytes of a header, and where the numbers in it stand."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.places: list[tuple[int, int]] = []
        """(position, width) of every count, length, type, size and offset."""

    def number(self, value: int, width: int = 8) -> None:
        self.places.append((len(self.raw), width))
        self.raw += (value % (1 << 8 * width)).to_bytes(width, "little")

    def text(self, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else value
        self.number(len(raw))
        self.raw += raw

    def value(self, value: Any) -> None:
        """A value with its type before it; a float in a list makes a list of floats."""
        if isinstance(value, list):
            self.number(9, 4)
            self.array(value)
        else:
            self.number(self._kind(value), 4)
            self._plain(value)

    def array(self, values: list[Any]) -> None:
        first = values[0] if values else 0
        self.number(9 if isinstance(first, list) else self._kind(first), 4)
        self.number(len(values))
        for value in values:
            if isinstance(value, list):
                self.array(value)
            else:
                self._plain(value)

    def _kind(self, value: Any) -> int:
        return {bool: 7, str: 8, bytes: 8, float: 6}.get(type(value), 4)

    def _plain(self, value: Any) -> None:
        if isinstance(value, str | bytes):
            self.text(value)
        elif isinstance(value, bool):
            self.raw.append(value)
        elif isinstance(value, float):
            self.raw += struct.pack("<f", value)
        else:
            self.number(value, 4)


KEYS: list[tuple[str, Any]] = [
    ("general.architecture", "llama"),
    ("general.alignment", 32),
    ("llama.block_count", 1),
    ("llama.context_length", 64),
    ("llama.embedding_length", 32),
    ("llama.feed_forward_length", 32),
    ("llama.attention.head_count", 2),
    ("llama.attention.head_count_kv", [1, 1]),
    ("llama.attention.layer_norm_rms_epsilon", 1e-5),
    ("llama.rope.freq_base", 10000.0),
    ("tokenizer.ggml.model", "llama"),
    ("tokenizer.ggml.tokens", ["<unk>", "<s>", "a", "b", "ab", "▁", "▁a", "<0x0A>"]),
    ("tokenizer.ggml.scores", [0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, 0.0]),
    ("tokenizer.ggml.token_type", [2, 3, 1, 1, 1, 1, 1, 6]),
    ("tokenizer.ggml.bos_token_id", 1),
    ("tokenizer.ggml.unknown_token_id", 0),
    ("tokenizer.ggml.add_bos_token", True),
    ("tokenizer.chat_template", "{{ messages[0].content }}"),
]
BYTE_LEVEL: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "a", "b", "ab", "Ġ", "Ġa", "c"],
    "tokenizer.ggml.merges": ["a b", "Ġ a"],
}
TENSORS: list[tuple[str, tuple[int, ...], int]] = [
    ("token_embd.weight", (32, 8), 8),
    ("output_norm.weight", (32,), 0),
    ("blk.0.attn_q.weight", (32, 32), 2),
    ("blk.0.attn_k.weight", (32, 16), 1),
    ("blk.0.attn_norm.weight", (32,), 0),
    ("blk.0.ffn_down.weight", (32, 32), 30),
    ("rope_freqs.weight", (8,), 0),
]
_DATA = bytes((7 * place + 1) % 64 for place in range(1 << 18))
SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 30: (1, 2)}


def gguf_file(
    keys: list[tuple[str, Any]], tensors: list[tuple[str, tuple[int, ...], int]], **changes: Any
) -> Writer:
    """A whole file; `changes` are other offsets by tensor index, or version and counts."""
    writer = Writer()
    writer.raw += b"GGUF"
    writer.number(changes.get("version", 3), 4)
    writer.number(changes.get("num_tensors", len(tensors)))
    writer.number(changes.get("num_keys", len(keys)))
    for key, value in keys:
        writer.text(key)
        writer.value(value)
    offset, data = 0, 0
    for index, (name, shape, kind) in enumerate(tensors):
        writer.text(name)
        writer.number(len(shape), 4)
        elements = 1
        for size in shape:
            writer.number(size)
            elements *= size
        writer.number(kind, 4)
        writer.number(changes.get("offsets", {}).get(index, offset))
        values, block = SIZES.get(kind, (1, 4))
        data = min(offset + elements // values * block, len(_DATA))
        offset = data + -data % 32
    writer.raw += bytes(-len(writer.raw) % 32)
    writer.raw += _DATA[:data]
    return writer


def _bits(rng: random.Random) -> bytes:
    raw = bytearray(_base(rng).raw)
    for _ in range(rng.randrange(1, 6)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _counts(rng: random.Random) -> bytes:
    writer = _base(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, width = rng.choice(writer.places)
        value = rng.choice(HUGE) % (1 << 8 * width)
        writer.raw[place : place + width] = value.to_bytes(width, "little")
    return bytes(writer.raw)


def _near_counts(rng: random.Random) -> bytes:
    writer = _base(rng)
    place, width = rng.choice(writer.places)
    value = int.from_bytes(writer.raw[place : place + width], "little")
    value = (value + rng.randrange(-40, 41)) % (1 << 8 * width)
    writer.raw[place : place + width] = value.to_bytes(width, "little")
    return bytes(writer.raw)


def _cut(rng: random.Random) -> bytes:
    raw = bytes(_base(rng).raw)
    return raw[: rng.randrange(len(raw))]


def _offsets(rng: random.Random) -> bytes:
    """Tensors past the end, over each other, or between multiples of the alignment."""
    index = rng.randrange(len(TENSORS))
    offset = rng.choice((*HUGE, *range(0, 4096, 32), rng.randrange(8192)))
    return bytes(gguf_file(KEYS, TENSORS, offsets={index: offset}).raw)


def _twice(rng: random.Random) -> bytes:
    keys, tensors = list(KEYS), list(TENSORS)
    if rng.random() < 0.5:
        keys.insert(rng.randrange(len(keys)), rng.choice(KEYS))
    else:
        tensors.insert(rng.randrange(len(tensors)), rng.choice(TENSORS))
    return bytes(gguf_file(keys, tensors).raw)


def _shapes(rng: random.Random) -> bytes:
    """Sizes of nothing, sizes whose product is more than 64 bits hold, other numbers of dimensions."""
    tensors = list(TENSORS)
    index = rng.randrange(len(tensors))
    name, _, kind = tensors[index]
    shape = tuple(
        rng.choice((0, 1, 8, 32, 1 << 16, 1 << 32, 1 << 63, (1 << 64) - 1))
        for _ in range(rng.randrange(7))
    )
    tensors[index] = (name, shape, rng.choice((kind, *range(42), 1 << 31)))
    return bytes(gguf_file(KEYS, tensors).raw)


def _nested(rng: random.Random) -> bytes:
    """Arrays in arrays, and values of another type than is due."""
    depth = rng.choice((1, 2, 3, 4, 5, 6, 50, 3000))
    # Each array says that it holds one array.
    raw = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)
    writer = Writer()
    writer.raw += b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    writer.text(rng.choice(KEYS)[0])
    writer.raw += raw
    if rng.random() < 0.5:
        return bytes(writer.raw)
    keys = dict(KEYS)
    value: Any = rng.choice(
        (
            "x",
            b"\xff\xfe",
            3,
            -1,
            0.5,
            float("nan"),
            True,
            [],
            [["a"], [["b"]]],
            [1],
            [float("inf")],
        )
    )
    keys[rng.choice(list(keys))] = value
    return bytes(gguf_file(list(keys.items()), TENSORS).raw)


def _words(rng: random.Random) -> bytes:
    """Other names, and texts that are no UTF-8 or far too long."""
    keys, tensors = dict(KEYS), list(TENSORS)
    word = rng.choice(("", "\x00", "blk.99999999999.attn_q.weight", "blk.0.x.y.z.weight", "../../x", "x" * 300, "x" * 70_000, "é" * 64))  # fmt: skip
    which = rng.randrange(3)
    if which == 0:
        index = rng.randrange(len(tensors))
        tensors[index] = (word, *tensors[index][1:])
    elif which == 1:
        keys[word] = rng.choice((b"\xc3", 1, "x"))
    else:
        tokens = list(keys["tokenizer.ggml.tokens"])
        tokens[rng.randrange(len(tokens))] = word
        keys["tokenizer.ggml.tokens"] = tokens
    return bytes(gguf_file(list(keys.items()), tensors).raw)


def _spliced(rng: random.Random) -> bytes:
    """Some bytes taken out, or put in twice."""
    raw = bytes(_base(rng).raw)
    first, second = sorted(rng.randrange(len(raw)) for _ in range(2))
    second = min(second, first + 64)
    return raw[:first] + raw[second:] if rng.random() < 0.5 else raw[:second] + raw[first:]


def _versions(rng: random.Random) -> bytes:
    version = rng.choice((0, 1, 2, 3, 4, 1 << 24, 2 << 24, 3 << 24, (1 << 32) - 1))
    alignment = rng.choice((*HUGE, 8, 16, 64))
    keys = [*KEYS[:1], ("general.alignment", alignment), *KEYS[2:]]
    return bytes(gguf_file(keys, TENSORS, version=version).raw)


@functools.cache
def _whole(is_byte_level: bool) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    keys = dict(KEYS)
    if is_byte_level:
        keys |= BYTE_LEVEL
        del keys["tokenizer.ggml.scores"]
    writer = gguf_file(list(keys.items()), TENSORS)
    return bytes(writer.raw), tuple(writer.places)


def _base(rng: random.Random) -> Writer:
    writer = Writer()
    raw, places = _whole(rng.random() < 0.3)
    writer.raw += raw
    writer.places += places
    return writer


GGUF_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "bits": _bits,
    "counts": _counts,
    "near counts": _near_counts,
    "cut": _cut,
    "offsets": _offsets,
    "twice": _twice,
    "shapes": _shapes,
    "nested": _nested,
    "words": _words,
    "spliced": _spliced,
    "versions": _versions,
}


def gguf_mutants(rng: random.Random, rounds: int) -> Iterator[bytes]:
    kinds = list(GGUF_KINDS.values())
    for number in range(rounds):
        yield kinds[number % len(kinds)](rng)


def check_header(header: Header, size: int) -> None:
    """By its own arithmetic: what was let through lies within the file, one tensor after the other."""
    end = 0
    for tensor in sorted(header.tensors.values(), key=lambda one: one.offset):
        elements = 1
        for length in tensor.shape:
            assert length > 0, tensor
            elements *= length
        values, block = READ_KINDS[tensor.kind]
        assert elements % values == 0 and elements // values * block == tensor.num_bytes, tensor
        assert end <= tensor.offset, tensor
        end = tensor.offset + tensor.num_bytes
        assert end <= size, tensor


def read_gguf(raw: bytes, folder: Path) -> bool:
    """Whether the header was read; then everything that the engine and the server read of the file is read, too."""
    try:
        header = parse(raw, "mutant")
    except OctavoError:
        return False
    check_header(header, len(raw))
    with contextlib.suppress(OctavoError):
        tokenizer = Tokenizer(*tokenizers_of.build(header))
        tokenizer.decode(tokenizer.encode("ab a\n<s>"))
    path = folder / "model.gguf"
    path.write_bytes(raw)
    for step in (read_facts, _touch):
        try:
            step(path)
        except OctavoError:
            continue
    return True


def _touch(path: Path) -> None:
    with GgufTensors(path) as file:
        for name in list(file.keys()):
            file.get_tensor(name).clone()


FORMATS = {
    "gguf": (gguf_mutants, read_gguf),
    "safetensors": (safetensors_mutants, read_safetensors),
}


def run(name: str, count: int, seed: int, folder: Path) -> Counter[str]:
    """What became of `count` mutants; raises for what should not have happened, with the mutant's number."""
    mutants, read = FORMATS[name]
    found: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, raw in enumerate(mutants(random.Random(seed), count)):
        started = time.perf_counter()
        try:
            found["read" if read(raw, folder) else "refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kept = Path(tempfile.gettempdir()) / f"finding.{name}"
            kept.write_bytes(raw)
            raise AssertionError(
                f"{kept}: {name} mutant {number} of seed {seed}: {error!r}"
            ) from error
        took = time.perf_counter() - started
        found["slow"] += took > LONGEST_S
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_BYTES, f"{grown >> 20} MiB more in memory"
    found["grown MiB"] = grown >> 20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=[*FORMATS], action="append")
    args = parser.parse_args()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for name in args.format or FORMATS:
        started, total = time.perf_counter(), Counter[str]()
        for done in range(0, args.count, CHUNK):
            with tempfile.TemporaryDirectory(dir=shared) as folder:
                count = min(CHUNK, args.count - done)
                total += run(name, count, args.seed + done, Path(folder))
            took = time.perf_counter() - started
            print(f"{name}: {done + count} mutants in {took:.0f} s: {dict(total)}", flush=True)


if __name__ == "__main__":
    main()
