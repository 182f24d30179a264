"""S9, media bombs: media are not supported, so nothing decodes any: refused by name, unread, and no decoder is there."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
import zlib

import pytest

from fakes import FakeEngine, InProcess, make_state

ENGINE = FakeEngine()
SERVER = InProcess(make_state(ENGINE))
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00\x08\x06\x00\x00\x00"
ZOO = {
    "png of 65k by 65k": ("image/png", PNG + zlib.compress(b"\x00" * 10_000_000)),
    "truncated gif": ("image/gif", b"GIF89a\xff\xff\xff\xff"),
    "jpeg 2000": ("image/jp2", b"\x00\x00\x00\x0cjP  \r\n\x87\n" * 100),
    "endless wav": ("audio/wav", b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00" * 100),
    "mp4": ("video/mp4", b"\x00\x00\x00\x18ftypmp42" * 1000),
    "svg": ("image/svg+xml", b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><svg>&a;</svg>"),
}
DECODERS = [
    "PIL",
    "cv2",
    "av",
    "decord",
    "soundfile",
    "librosa",
    "imageio",
    "numba",
    "pydub",
    "moviepy",
    "torchaudio",
    "torchcodec",
]


@pytest.mark.parametrize("name", ZOO)
def test_a_bomb_is_refused_by_name(name: str) -> None:
    media, data = ZOO[name]
    url = f"data:{media};base64,{base64.b64encode(data).decode()}"
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "input_audio", "input_audio": audio},
        {"type": "file", "file": {"file_data": url, "filename": "x.pdf"}},
        {"type": "image_pil", "image_pil": url},
        {"type": "image_embeds", "image_embeds": url},
    ]
    for part in parts:
        content = [{"type": "text", "text": "a"}, *[part] * 8]
        begun = time.monotonic()
        answer = SERVER.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}
        )
        assert answer.status_code == 400, part["type"]
        assert (answer.json()["error"]["param"] or "").startswith("messages")
        assert time.monotonic() - begun < 2.0
    block = {
        "type": "image",
        "source": {"type": "base64", "media_type": media, "data": audio["data"]},
    }
    messages = [{"role": "user", "content": [block]}]
    body = {"model": "fake-model", "max_tokens": 1, "messages": messages}
    assert SERVER.post("/v1/messages", body).status_code == 400
    content = [{"type": "input_image", "image_url": url}]
    assert (
        SERVER.post("/v1/responses", {"input": [{"role": "user", "content": content}]}).status_code
        == 400
    )
    assert not ENGINE.submitted


def test_no_decoder_is_loaded() -> None:
    code = (
        "import sys, octavo.server.app, octavo.tools.serve, octavo.engine.boot; "
        f"print([name for name in {DECODERS!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
