"""Bytes that are no HTTP, or too much of it: requests cut, smuggled, endless, slow, or of another protocol."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hostile.shots import RawShot

_BODY = b'{"prompt":"a","max_tokens":2}'
_HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
GOOD = _HEAD + b"content-length: %d\r\n\r\n" % len(_BODY) + _BODY

WRITTEN: tuple[RawShot, ...] = (
    RawShot(name="nothing", parts=(b"",), half_close=True),
    RawShot(name="line feed", parts=(b"\n" * 1000,), half_close=True),
    RawShot(
        name="TLS hello",
        parts=(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,),
        half_close=True,
    ),
    RawShot(
        name="HTTP/2 preface",
        parts=(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 50,),
        half_close=True,
    ),
    RawShot(
        name="upgrade to h2c",
        parts=(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="websocket",
        parts=(
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a\r\n\r\n",
        ),
        half_close=True,
    ),
    RawShot(name="old version", parts=(b"GET /livez HTTP/0.9\r\n\r\n",), half_close=True),
    RawShot(name="no version", parts=(b"GET /livez\r\n\r\n",), half_close=True),
    RawShot(
        name="long line", parts=(b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",), half_close=True
    ),
    RawShot(
        name="long header",
        parts=(b"GET /livez HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="many headers",
        parts=(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",),
        half_close=True,
    ),
    RawShot(
        name="endless header",
        parts=(b"GET /livez HTTP/1.1\r\nx: ", *[b"a" * 20_000] * 10),
        half_close=True,
    ),
    RawShot(
        name="folded header",
        parts=(b"GET /livez HTTP/1.1\r\nx: a\r\n b\r\n\tc\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="header without name", parts=(b"GET /livez HTTP/1.1\r\n: a\r\n\r\n",), half_close=True
    ),
    RawShot(
        name="zero in a header",
        parts=(b"GET /livez HTTP/1.1\r\nx: a\x00b\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="zero in the path",
        parts=(b"GET /li\x00vez HTTP/1.1\r\nhost: a\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="bad escapes", parts=(b"GET /%zz%f HTTP/1.1\r\nhost: a\r\n\r\n",), half_close=True
    ),
    RawShot(
        name="path not UTF-8",
        parts=(b"GET /%ff%fe%80 HTTP/1.1\r\nhost: a\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="absolute form",
        parts=(b"GET http://evil/metrics HTTP/1.1\r\nhost: a\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="authority form",
        parts=(b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: a\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="two hosts",
        parts=(b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="length and chunks",
        parts=(
            _HEAD
            + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        ),
        half_close=True,
    ),
    RawShot(
        name="two lengths",
        parts=(_HEAD + b"content-length: 5\r\ncontent-length: 500\r\n\r\n" + _BODY,),
        half_close=True,
    ),
    RawShot(
        name="length below zero",
        parts=(_HEAD + b"content-length: -1\r\n\r\n" + _BODY,),
        half_close=True,
    ),
    RawShot(
        name="length beyond numbers",
        parts=(_HEAD + b"content-length: 99999999999999999999999\r\n\r\n" + _BODY,),
        half_close=True,
    ),
    RawShot(
        name="length too large",
        parts=(_HEAD + b"content-length: 1099511627776\r\n\r\n" + _BODY,),
        half_close=True,
    ),
    RawShot(
        name="length not reached",
        parts=(_HEAD + b"content-length: 500\r\n\r\n" + _BODY,),
        half_close=True,
    ),
    RawShot(
        name="chunk size beyond numbers",
        parts=(_HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\na\r\n",),
        half_close=True,
    ),
    RawShot(
        name="chunk size is no number",
        parts=(_HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\na\r\n0\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="chunk too short",
        parts=(_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab\r\n0\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="chunks of one byte",
        parts=(
            _HEAD + b"transfer-encoding: chunked\r\n\r\n",
            *[b"1\r\n%c\r\n" % c for c in _BODY],
            b"0\r\n\r\n",
        ),
        half_close=True,
    ),
    RawShot(
        name="coding of codings",
        parts=(_HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",),
        half_close=True,
    ),
    RawShot(
        name="expect",
        parts=(_HEAD + b"expect: 100-continue\r\ncontent-length: 30\r\n\r\n",),
        half_close=True,
    ),
    RawShot(name="pipelined", parts=(GOOD * 20,), half_close=True),
    RawShot(name="pipelined and gone", parts=(GOOD * 20,)),
    RawShot(name="gone after the head", parts=(_HEAD,)),
    RawShot(name="gone in the body", parts=(_HEAD + b"content-length: 30\r\n\r\n{",)),
    RawShot(name="gone after asking", parts=(GOOD,)),
    RawShot(
        name="byte by byte", parts=tuple(GOOD[n : n + 1] for n in range(len(GOOD))), half_close=True
    ),
    RawShot(name="bare line feeds", parts=(GOOD.replace(b"\r\n", b"\n"),), half_close=True),
    RawShot(
        name="header splits an answer",
        parts=(b"GET /v1/models/a%0d%0aset-cookie:%20b HTTP/1.1\r\nhost: a\r\n\r\n",),
        half_close=True,
    ),
)


def raw_shots(count: int, seed: int) -> Iterator[RawShot]:
    """The written ones, then mutations of good and bad requests up to `count`."""
    yield from WRITTEN[:count]
    drawn = random.Random(seed)
    seeds = [GOOD, *(b"".join(one.parts) for one in WRITTEN if sum(map(len, one.parts)) < 5000)]
    for number in range(len(WRITTEN), count):
        data = bytearray(drawn.choice(seeds) or GOOD)
        for _ in range(drawn.randint(1, 12)):
            at = drawn.randrange(len(data) + 1)
            match drawn.randrange(4):
                case 0:
                    data[at : at + drawn.randint(0, 4)] = bytes(
                        drawn.randrange(256) for _ in range(drawn.randint(0, 4))
                    )
                case 1:
                    del data[at : at + drawn.randint(1, 40)]
                case 2:
                    data[at:at] = drawn.choice(
                        (b"\r\n", b"\n", b":", b" ", b"\x00", b"\xff", b"%", b"0")
                    )
                case _:
                    end = at + drawn.randint(1, 60)
                    data[at:at] = data[at:end]
        cut = drawn.randrange(len(data) + 1)
        yield RawShot(
            name=f"mutation {number}",
            parts=(bytes(data[:cut]), bytes(data[cut:])),
            half_close=drawn.random() < 0.7,
        )
