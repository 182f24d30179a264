"""Filling a model's weights: from safetensors files, or with random numbers. Knows names and shapes, not layers.

Each weight is filled exactly once; a tensor nobody asked for, a missing one and a wrong shape are errors, raised
together where there are several.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from octavo.core.errors import ModelError
from octavo.core.gguf import Header, is_gguf
from octavo.layers.build import Weight
from octavo.models.ahead import PackedAhead
from octavo.models.facts import ModelFacts
from octavo.models.files import SINGLE_NAME, weight_files
from octavo.models.gguf_tensors import GgufTensors

Progress = Callable[[float], None]
"""Told the share done, from 0 to 1, rising."""


class Carrier(Protocol):
    """Brings tensors of the host to a device while others are read."""

    def carry(self, place: torch.Tensor, source: torch.Tensor, /) -> None:
        """Begin to copy `source` to `place`, in its dtype."""

    def finish(self) -> None:
        """Wait for all of it."""


class Filling(NamedTuple):
    """Who is told of weights that are filled, who brings them, who has packed some of them already, and what is known of them."""

    progress: Progress | None = None
    carrier: Carrier | None = None
    ahead: PackedAhead | None = None
    facts: ModelFacts | None = None
    """What the checkpoint says, where it was read before, for the same runner."""


IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the config."""
LOADABLE = (torch.float32, torch.float16, torch.bfloat16)
DUMMY_STD = 0.02
LEVELS_STD = 30
"""Of levels of 8 bits; with their scale they have the deviation of other weights."""
WORDS_STD = 4.6
"""Of levels of 4 bits that are all as likely."""
DUMMY_POOL = 4_194_301
"""A prime, so that rows of a weight never repeat each other."""
MAX_LISTED = 8
ALIGNMENT = 8
"""Bytes; what safetensors promises of each tensor in its file, and whole numbers of every dtype."""


class Spelling(NamedTuple):
    """How names in the files differ from those in the map."""

    prefix: str = ""
    """May be missing in front of names."""
    ignored: tuple[str, ...] = ()
    """Beginnings of names that nobody wants."""
    folders: tuple[str, ...] = ()
    """Folders below the model's whose single file belongs to it; `2_Dense` holds `linear.weight` of `2_Dense.linear`."""

    unused: tuple[str, ...] = ()
    """Endings of names that nobody wants."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Endings of names in files, and what the map has instead."""
    empty: tuple[str, ...] = ()
    """Endings of names that nobody wants if all of the tensor is 0."""

    def places(self, folder: Path) -> list[tuple[Path, str]]:
        """Files, and what stands before the names in them."""
        if is_gguf(folder):
            return [(folder, "")]
        found = [(path, "") for path in weight_files(folder)]
        return found + [(folder / name / SINGLE_NAME, f"{name}.") for name in self.folders]

    def of(self, name: str, known: Container[str]) -> str | None:
        """The name in the map; None for what is ignored, the name itself for what nobody knows."""
        if name in known:
            return name
        if self.prefix and self.prefix + name in known:
            return self.prefix + name
        for ending, ours in self.renamed:
            if name.endswith(ending) and name.removesuffix(ending) + ours in known:
                return name.removesuffix(ending) + ours
        is_unwanted = name.startswith(self.ignored) or name.endswith(self.unused)
        return None if is_unwanted else name


def open_tensors(path: Path, parts: tuple[Header, ...] = ()) -> Any:
    """A file whose `keys()` are tensors that `get_tensor` reads, on entering; either format. `parts`: of a GGUF file that was
    read before.
    """
    if is_gguf(path):
        return GgufTensors(path, parts)
    return safe_open(path, framework="pt", device="cpu")


def load_weights(
    folder: Path,
    weights: Mapping[str, Weight],
    aliases: Mapping[str, str],
    filling: Filling = Filling(),
    *,
    spelling: Spelling = Spelling(),
) -> None:
    """Stream every tensor of the checkpoint into its place, converting the dtype; files are mapped, not read whole.

    Where a tensor is the whole of a parameter in the dtype that is asked for, on the CPU, the parameter becomes a view of
    the mapped file instead of a copy. Layers copy it when they repack it, or else keep it mapped: then the checkpoint must
    not be rewritten in place while it is served. What is not mapped goes by the carrier of `filling`; without one, one copy
    after another. What was packed ahead is checked and not read.

    Raises:
        ModelError: unreadable file; unknown, missing, repeated or misshapen tensors, listed together.
    """
    progress, carrier, ahead, facts = filling
    parts = () if facts is None else facts.parts
    # What an alias is compared with is filled all the same.
    unread = set() if ahead is None else ahead.names - set(aliases.values())
    problems: list[str] = []
    filled: set[str] = set()
    copies: dict[str, torch.Tensor] = {}
    total = sum(weight.tensor.numel() for weight in weights.values())
    done = 0
    known = {*weights, *aliases}
    for path, before in spelling.places(folder):
        try:
            with open_tensors(path, parts) as file:
                stored_names = file.keys()
                for stored in stored_names:
                    name = spelling.of(before + stored, known)
                    if name is None:
                        continue
                    if name in aliases:
                        copies[name] = file.get_tensor(stored)
                    elif name in weights:
                        tensor = file.get_tensor(stored)
                        problems += _fill(
                            name, weights[name], tensor, filled, carrier, is_unread=name in unread
                        )
                        done += weights[name].tensor.numel()
                        if progress is not None:
                            progress(min(1.0, done / total))
                    elif not name.endswith(IGNORED_SUFFIXES) and not (
                        name.endswith(spelling.empty) and not file.get_tensor(stored).any()
                    ):
                        problems.append(f"{name}: not part of this architecture")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}", code="E-MODEL-05") from error
    if carrier is not None:
        carrier.finish()
    problems += [
        f"{name}: missing"
        for name, weight in weights.items()
        if name not in filled and weight.init != "default"
    ]
    if not problems:
        problems += _check_aliases(copies, aliases, weights)
    _raise_all(folder, problems)


def fill_dummy(
    weights: Mapping[str, Weight],
    seed: int,
    progress: Progress | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Random weights without a checkpoint: normal with deviation 0.02, norms 1, biases 0.

    The same seed, names and `dtype` (the checkpoint's, to which values are rounded) give the same values on every
    device and in every wider dtype. Values come from one pool, read from a place that
    the name decides: drawing each afresh would take most of a minute per billion.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.empty(DUMMY_POOL).normal_(0.0, DUMMY_STD, generator=generator).to(dtype)
    words: torch.Tensor | None = None
    total = sum(weight.tensor.numel() for weight in weights.values())
    done = 0
    for name, weight in weights.items():
        match weight.init:
            case "ones":
                weight.tensor.fill_(1.0)
            case "zeros":
                weight.tensor.zero_()
            case "levels":
                whole = (pool.float() * LEVELS_STD / DUMMY_STD).round().clamp(-127, 127)
                _fill_from_pool(weight.tensor, whole, zlib.crc32(name.encode()) % DUMMY_POOL)
            case "scales":
                weight.tensor.fill_(DUMMY_STD / LEVELS_STD)
            case "words":
                words = _words(pool) if words is None else words
                _fill_from_pool(weight.tensor, words, zlib.crc32(name.encode()) % DUMMY_POOL)
            case "group_scales":
                weight.tensor.fill_(DUMMY_STD / WORDS_STD)
            case "default":
                pass
            case "normal":
                _fill_from_pool(weight.tensor, pool, zlib.crc32(name.encode()) % DUMMY_POOL)
        done += weight.tensor.numel()
        if progress is not None:
            progress(done / total)


def _words(pool: torch.Tensor) -> torch.Tensor:
    """int32 whose fields are all as likely: a multiplier of 2^32 over the golden ratio spreads what is alike."""
    # The golden ratio: Knuth, The Art of Computer Programming 3, 6.4.
    return (pool.float().view(torch.int32).long() * 2654435769 >> 16).to(torch.int32)


def _fill_from_pool(tensor: torch.Tensor, pool: torch.Tensor, start: int) -> None:
    flat = tensor.view(-1)
    position = 0
    while position < flat.numel():
        count = min(len(pool) - start, flat.numel() - position)
        flat[position : position + count] = pool[start : start + count].to(flat.dtype)
        position += count
        start = 0


def _fill(
    name: str,
    weight: Weight,
    tensor: torch.Tensor,
    filled: set[str],
    carrier: Carrier | None,
    *,
    is_unread: bool = False,
) -> list[str]:
    """Check the tensor and bring it to its place; `is_unread`: nobody will look there."""
    if name in filled:
        return [f"{name}: in more than one file"]
    filled.add(name)
    if weight.init == "scales":
        tensor = _scales(weight.tensor, tensor)
    if tensor.shape != weight.tensor.shape:
        given, expected = list(tensor.shape), list(weight.tensor.shape)
        return [f"{name}: has shape {given}, the config asks for {expected}"]
    loadable: tuple[torch.dtype, ...] = LOADABLE
    if weight.init in ("levels", "words"):
        loadable = (weight.tensor.dtype,)
    elif weight.init == "default":
        loadable = (torch.int32, torch.int64)
    if tensor.dtype not in loadable:
        return [f"{name}: has dtype {tensor.dtype}, expected one of {loadable}"]
    if is_unread or _adopt(weight.tensor, tensor):
        return []
    if carrier is None:
        weight.tensor.copy_(tensor)
    else:
        carrier.carry(weight.tensor, tensor)
    return []


def _scales(place: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Scales in the shape of their place: one number stands for all, and axes of one may be there or not."""
    if tensor.numel() == 1:
        return tensor.reshape(()).expand(place.shape)
    return (
        tensor.reshape(place.shape) if tensor.squeeze().shape == place.squeeze().shape else tensor
    )


def _adopt(place: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Let `place`, or what it is a view of from end to end, be `tensor` itself; False where that cannot be."""
    # A merged parameter of one part is noted as a slice that is all of it.
    whole = place if place._base is None else place._base
    if whole.shape != tensor.shape or whole.dtype != tensor.dtype or whole.device != tensor.device:
        return False
    # Mapped tensors lie where the file has them; vectors are small, and kernels may want them aligned.
    if tensor.ndim < 2 or tensor.data_ptr() % ALIGNMENT or not tensor.is_contiguous():
        return False
    whole.set_(tensor)  # type: ignore[call-overload]
    if place is not whole:
        place.set_(tensor)  # type: ignore[call-overload]
    return True


def _check_aliases(
    copies: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    weights: Mapping[str, Weight],
) -> list[str]:
    problems = []
    for name, tensor in copies.items():
        target = weights[aliases[name]].tensor
        if tensor.shape != target.shape or not torch.equal(tensor.to(target), target):
            problems.append(f"{name}: differs from {aliases[name]}, with which the config ties it")
    return problems


def _raise_all(folder: Path, problems: list[str]) -> None:
    if not problems:
        return
    shown = "; ".join(problems[:MAX_LISTED])
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    raise ModelError(
        f"the weights in {folder} do not fit its config: {shown}{more}.",
        code="E-MODEL-06",
        fix="Check that the download is complete and that the config belongs to it.",
    )
