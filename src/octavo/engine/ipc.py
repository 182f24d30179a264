"""Frames between the engine process and its clients: 4-byte little-endian length, then msgpack of a tagged union.

The schema is fixed and closed: what does not decode into it is refused and the peer dropped. Never pickle.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

import msgspec

from octavo.core.charge import Charges
from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError, ErrorInfo
from octavo.core.pooling import PoolingFacts
from octavo.core.request import Request
from octavo.core.result import Advanced, EngineStats, Event, FinishReason
from octavo.decoding.grammar.base import Vocabulary
from octavo.meter.steplog import StepRecord

MAX_FRAME_BYTES = 1 << 30
"""Above the largest honest one: prompt_logprobs of 20 over a million tokens are 300 MB."""
_LENGTH = struct.Struct("<I")


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the start-up: parts follow each other without gaps, so they sum to the whole."""

    name: str
    seconds: float
    detail: str = ""


class StartEngine(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Client -> engine, the first frame: what to start, and when it was asked for (`time.monotonic()`)."""

    config: EngineConfig
    asked_at: float


class UseVocabulary(msgspec.Struct, frozen=True, tag="vocabulary"):
    """Client -> engine, before the first request with a grammar: what grammars are built for."""

    vocabulary: Vocabulary


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Client -> engine: run this request."""

    request: Request


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Client -> engine: no more of these is wanted; they end with a `Finished`. Unknown ids are ignored."""

    ids: tuple[str, ...]
    reason: FinishReason = "abort"
    """stop: the callers have all they asked for, up to a stop string; else they are gone."""


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    """Client -> engine: forget all cached prefixes that nobody is using."""


class FollowSteps(msgspec.Struct, frozen=True, tag="follow_steps"):
    """Client -> engine: from now on say what each step was (`Steps`), of at most `count` further ones; 0: no more.

    Who follows asks again before they are used up. An engine that is not asked keeps on, and says later what was lost.
    """

    count: int


class ChargeEvery(msgspec.Struct, frozen=True, tag="charge_every"):
    """Client -> engine: tell where time went at least so often; 0: after every step."""

    seconds: float


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Client -> engine: abort what runs, then exit 0."""


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag="loading"):
    """Engine -> client, while starting: what it is doing and how far it is, 0 to 1."""

    phase: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Engine -> client, once: what was started."""

    model: str
    max_model_len: int
    vocab_size: int
    device: str
    dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    kv_tokens: int
    """Tokens of context that the KV cache holds."""
    memory: tuple[tuple[str, int], ...]
    """Parts of the memory plan in bytes; they sum to the total."""
    decisions: tuple[tuple[str, str, str], ...]
    """(name, value, reason) of each automatic choice."""
    phases: tuple[Phase, ...]
    pid: int
    pooling: PoolingFacts | None = None
    """Set where the model pools prompts and generates nothing."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Engine -> client, before the first step with these requests: if it ends the process, they were in it."""

    ids: tuple[str, ...]
    at: float
    """`time.monotonic()`"""


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Engine -> client: what a step produced."""

    events: tuple[Event, ...]
    stats: EngineStats


class Went(msgspec.Struct, frozen=True, tag="went"):
    """Engine -> client: a step in which each sequence got one token and nothing else happened, as columns.

    Over a socket, names are said once (`Abbreviation`).
    """

    token_ids: Sequence[int]
    stats: EngineStats
    ids: tuple[str, ...] | None = None
    """None: those of the last such message that had any."""
    num_preemptions: tuple[int, ...] = ()
    """Beside `ids`; empty where nobody gave way."""

    @property
    def events(self) -> Advanced:
        """What it says of each."""
        assert self.ids is not None, "a shortened message, which has to be completed"
        return Advanced(self.ids, self.token_ids, self.num_preemptions)


class Abbreviation:
    """What one end of a connection leaves out of messages and the other puts back. Each has its own."""

    def __init__(self) -> None:
        self._ids: tuple[str, ...] = ()
        self._num_preemptions: tuple[int, ...] = ()

    def shorten(self, message: FromEngine) -> FromEngine:
        """Before it is sent: without names that are the same object as last time."""
        if not isinstance(message, Went) or message.ids is None:
            return message
        if message.ids is self._ids:
            return Went(message.token_ids, message.stats)
        self._ids = message.ids
        return message

    def complete(self, message: FromEngine) -> FromEngine:
        """After it was received.

        Raises:
            EngineError: it leaves out what was never said, or has more tokens than names.
        """
        if not isinstance(message, Went):
            return message
        if message.ids is not None:
            self._ids, self._num_preemptions = message.ids, message.num_preemptions
        if len(message.token_ids) != len(self._ids):
            raise EngineError(
                f"{len(message.token_ids)} tokens from the engine for {len(self._ids)} requests",
                code="bad_frame",
            )
        return Went(message.token_ids, message.stats, self._ids, self._num_preemptions)


class Steps(msgspec.Struct, frozen=True, tag="steps"):
    """Engine -> client, while it follows: what the steps since the last message were."""

    records: tuple[StepRecord, ...]
    num_lost: int = 0
    """Steps before these that nobody took in time."""


class Charged(msgspec.Struct, frozen=True, tag="charged"):
    """Engine -> client: where its time went. Before the `Events` with the ends of the requests that it is final of."""

    charges: Charges


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """Engine -> client: the engine cannot start or go on; the cause, and the last frame."""

    error: ErrorInfo


ToEngine = (
    StartEngine
    | UseVocabulary
    | Submit
    | Cancel
    | ResetPrefixCache
    | FollowSteps
    | ChargeEvery
    | Shutdown
)
FromEngine = Loading | Ready | Started | Charged | Events | Went | Steps | Fatal

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """Encode one message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode_to_engine(body: bytes | bytearray | memoryview) -> ToEngine:
    """Decode a frame's body.

    Raises:
        EngineError: it is not one of the known messages.
    """
    try:
        message: ToEngine = _to_engine.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineError(f"bad frame from a client: {error}", code="bad_frame") from error
    return message


def decode_from_engine(body: bytes | bytearray | memoryview) -> FromEngine:
    """Decode a frame's body.

    Raises:
        EngineError: it is not one of the known messages.
    """
    try:
        message: FromEngine = _from_engine.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineError(f"bad frame from the engine: {error}", code="bad_frame") from error
    return message


class FrameBuffer:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the bodies that are whole now.

        Raises:
            EngineError: a frame claims to be larger than MAX_FRAME_BYTES.
        """
        self._data += data
        bodies: list[bytes] = []
        offset = 0
        while len(self._data) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, offset)
            if length > MAX_FRAME_BYTES:
                raise EngineError(
                    f"frame of {length} bytes; at most {MAX_FRAME_BYTES}.", code="bad_frame"
                )
            end = offset + _LENGTH.size + length
            if len(self._data) < end:
                break
            bodies.append(bytes(self._data[offset + _LENGTH.size : end]))
            offset = end
        del self._data[:offset]
        return bodies


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame's body.

    Raises:
        asyncio.IncompleteReadError: the peer is gone.
        EngineError: the frame is too large.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise EngineError(f"frame of {length} bytes; at most {MAX_FRAME_BYTES}.", code="bad_frame")
    return await reader.readexactly(length)
