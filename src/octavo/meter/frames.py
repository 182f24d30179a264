"""What the step log on disk says, frame by frame: a machine, requests as they come and go, steps. Never a text or a token.

A frame is its length and CRC-32 (two little-endian words), then msgpack. A file that ends in the middle of one, or in
bytes that are none, is read up to there. Requests have a number, which counts from 0 in each engine process; a step of
nothing but the same decodes as the one before says so in a few bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

import msgspec

from octavo.core.kvspec import KVGroup
from octavo.core.steptime import StepTime

VERSION = 1
DIGEST_BYTES = 8
"""Of the name of a block: enough to tell contents apart, too little to look one up in a cache."""
MOST_BYTES = 1 << 26
_HEADER = struct.Struct("<II")

How = Literal["step", "cancel", "expired", "add"]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler is made of."""

    model: str
    policy: str
    limits: dict[str, int | float | bool | None]
    """Of `scheduler/limits.py`, by name."""
    groups: tuple[KVGroup, ...]
    enable_prefix_caching: bool


class Head(msgspec.Struct, frozen=True, array_like=True, tag="H"):
    """The first frame of a file."""

    version: int
    run: str
    """One engine process."""
    segment: int
    """Counts from 0 in each run."""
    at: float
    """Unix time at which the file begins."""
    epoch: float
    """What to add to the run's clock (`time.monotonic()`) to get Unix time."""
    machine: Machine
    open: dict[int, str]
    """Numbers and ids of the requests that are open now."""


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag="A"):
    """The scheduler takes a request."""

    number: int
    id: str
    at: float
    """On the run's clock, when it was accepted."""
    num_prompt: int
    max_tokens: int
    index: int
    priority: int
    tenant: str
    weight: float
    adapter: str | None
    deadline: float | None
    num_resumed: int
    restarts: int
    is_pooling: bool
    is_whole: bool
    """Whether every position is computed, so that no cached prefix serves it."""
    added: float = 0.0
    """On the run's clock, when the scheduler took it."""


class Named(msgspec.Struct, frozen=True, array_like=True, tag="N"):
    """What some blocks of a request's tokens hold, as truncated names: equal where contents are, up to and with the block."""

    number: int
    first: int
    """Index of the first block."""
    digests: bytes
    """`DIGEST_BYTES` each."""


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="E"):
    """A request left the scheduler for good."""

    number: int
    how: How
    """By what: the results of the last step, a cancel, its deadline, or before it began."""
    reason: str
    """stop, length, abort or failed."""
    is_fault: bool
    """Whether the engine failed it, so that what it left in the cache is not built on."""
    num_output: int
    now: float


class Forgot(msgspec.Struct, frozen=True, array_like=True, tag="F"):
    """Cached prefixes that nobody used were dropped."""


class Line(msgspec.Struct, frozen=True, array_like=True, tag="L"):
    """What a step is predicted to take from here on."""

    step_time: StepTime


class Planned(msgspec.Struct, frozen=True, array_like=True, tag="P"):
    """The scheduler was asked, and the step that it planned is said when it has results: others may come in between.

    Only where steps are planned one ahead; elsewhere `Ran.planned` says it.
    """

    step: int
    """0: nothing could run beside the step that was under way."""
    now: float
    """On the run's clock."""


class Ran(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """A step. None in a column: as the step before would have it go on (the same requests, each one token further)."""

    step: int
    planned: float
    """When the scheduler was asked, on the run's clock."""
    begun: float
    elapsed_s: float
    gap_s: float
    free_blocks: int
    numbers: list[int] | None = None
    starts: list[int] | None = None
    counts: list[int] | None = None
    """None: one token each."""
    sampled: list[int] | None = None
    """None: one token each; -1 of a slice that failed."""
    blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Index of a slice, and its blocks."""
    started: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()
    waiting: tuple[tuple[int, int], ...] = ()
    """Reasons as indices into `core.waits.REASONS`."""
    heads: tuple[tuple[int, int], ...] = ()


Frame = Head | Arrived | Named | Ended | Forgot | Line | Planned | Ran

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """One frame with its length and checksum in front."""
    body = _encoder.encode(frame)
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


def decode(data: bytes) -> Iterator[Frame]:
    """The frames of a file, as far as they are whole."""
    at = 0
    while len(data) - at >= _HEADER.size:
        length, checksum = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        body = data[at : at + length]
        if length > MOST_BYTES or len(body) < length or zlib.crc32(body) != checksum:
            return
        try:
            yield _decoder.decode(body)
        except msgspec.MsgspecError:
            return
        at += length
