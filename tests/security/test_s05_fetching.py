"""S5, request forgery: there is no media and nothing is ever fetched, whatever URL stands wherever in a body."""

from __future__ import annotations

import ast
import json
import socket
from typing import Any

from house.sources import package_sources
from security.conftest import Live

CLIENTS = {
    "aiohttp",
    "httpx",
    "requests",
    "urllib3",
    "http.client",
    "ftplib",
    "smtplib",
    "urllib.request",
}
OUTSIDE = "src/octavo/tools/"
"""Only what the operator types calls others: `octavo chat --url`, `octavo bench serve`."""


def test_no_room_but_the_tools_has_a_client() -> None:
    found = []
    for source in package_sources():
        if source.name.startswith(OUTSIDE):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = {module, *(f"{module}.{alias.name}" for alias in node.names)}
            else:
                continue
            found += [f"{source.name}:{name}" for name in names & CLIENTS]
    assert not found


def part(kind: str, value: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"type": kind, kind: value}]}],
        "max_tokens": 1,
    }


def bodies(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Wherever some server has fetched something, and wherever a URL can stand."""
    chat, text, answer = "/v1/chat/completions", "/v1/completions", "/v1/responses"
    user = [{"role": "user", "content": url}]
    image = {"type": "input_image", "image_url": url}
    file = {"type": "input_file", "file_url": url}
    block = {"type": "image", "source": {"type": "url", "url": url}}
    return [
        (chat, part("image_url", {"url": url})),
        (chat, part("image_url", url)),
        (chat, part("video_url", {"url": url})),
        (chat, part("audio_url", {"url": url})),
        (chat, part("input_audio", {"data": url, "format": "wav"})),
        (chat, part("file", {"file_url": url})),
        (chat, part("text", f"![x]({url})")),
        (chat, {"messages": user, "max_tokens": 1}),
        (chat, {"messages": user, "chat_template": f"{{% include '{url}' %}}"}),
        (chat, {"messages": user, "chat_template": url}),
        (chat, {"messages": user, "documents": [{"url": url}], "max_tokens": 1}),
        (chat, {"messages": user, "tools": [{"type": "mcp", "server_url": url}]}),
        (chat, {"messages": user, "web_search_options": {"url": url}}),
        (chat, {"messages": user, "media_io_kwargs": {"image": {"url": url}}}),
        (text, {"prompt": url, "max_tokens": 1}),
        (text, {"prompt": "a", "structured_outputs": {"json": {"$ref": url}}}),
        (text, {"prompt": "a", "structured_outputs": {"json": {"$schema": url}}}),
        (text, {"prompt": "a", "structured_outputs": {"json": {"$id": url, "$ref": "x.json"}}}),
        (text, {"prompt": "a", "structured_outputs": {"grammar": f'%import "{url}"\nstart: "a"'}}),
        (text, {"prompt": "a", "kv_transfer_params": {"remote_host": url}}),
        (text, {"prompt": "a", "model": url}),
        (answer, {"input": [{"role": "user", "content": [image]}]}),
        (answer, {"input": [{"role": "user", "content": [file]}]}),
        (answer, {"input": "a", "tools": [{"type": "mcp", "server_label": "x", "server_url": url}]}),
        (answer, {"input": "a", "prompt": {"id": url}}),
        ("/v1/messages", {"model": "octavo-mini", "max_tokens": 1, "messages": [{"role": "user", "content": [block]}]}),
        ("/v1/batches", {"input_file_id": url, "endpoint": text, "completion_window": "24h"}),
        ("/v1/batches", {"input_file_id": "x", "endpoint": url, "completion_window": "24h"}),
        ("/tokenize", {"prompt": url}),
        ("/v1/embeddings", {"input": url}),
        ("/score", {"text_1": url, "text_2": {"content": [{"type": "image_url", "image_url": {"url": url}}]}}),
    ]  # fmt: skip


def test_no_url_in_any_body_is_fetched(live: Live) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap, live.client() as client:
        port = trap.getsockname()[1]
        spellings = (
            f"http://127.0.0.1:{port}/x.png",
            f"http://allowed.example@127.0.0.1:{port}/",
            f"http://[::ffff:127.0.0.1]:{port}\\@allowed.example/",
            f"//127.0.0.1:{port}/",
            f"ftp://127.0.0.1:{port}/",
        )
        for url in spellings:
            for path, body in bodies(url):
                status = client.post(path, json=body).status_code
                assert status in (200, 400, 404), (path, body, status)
                if "image_url" in json.dumps(body) or "video_url" in json.dumps(body):
                    assert status == 400
        batch = json.dumps({"custom_id": "a", "method": "POST", "url": spellings[0], "body": {}})
        form = {"purpose": "batch"}
        file = {"file": ("b.jsonl", batch.encode())}
        made = client.post("/v1/files", data=form, files=file).json()
        client.post("/v1/batches", json={"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"})  # fmt: skip
        for name in ("file", "url"):
            answer = client.post("/v1/files", data={**form, name: spellings[0]})
            assert answer.status_code in (400, 415)
        trap.setblocking(False)
        try:
            trap.accept()
        except BlockingIOError:
            return
    raise AssertionError("something was fetched")
