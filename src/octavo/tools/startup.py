"""What `octavo serve` prints when it is ready: the memory sum, the decisions, the timeline, how
to call it. Pure.

Every list of parts sums to the whole it explains; what is left over is shown as such.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from octavo.engine.ipc import Phase, Ready
from octavo.tools.tables import bytes_text, seconds_text, table

PROMPT = "def add(a, b):"
"""What the printed lines complete."""


class Address(NamedTuple):
    """How callers reach the server."""

    host: str
    port: int
    model: str
    needs_key: bool
    has_keys: bool = False
    """Whether OCTAVO_API_KEY holds several keys, of which a caller sends one."""
    is_tls: bool = False

    @property
    def url(self) -> str:
        """A URL that works from this machine, also when listening on every address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http{'s' * self.is_tls}://{host}:{self.port}"


def process_age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    text = Path("/proc/self/stat").read_text(encoding="ascii")
    # Field 22, in ticks after boot; field 2 may hold spaces, so count from its parenthesis.
    ticks = int(text.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def memory_text(ready: Ready) -> str:
    """The memory plan as a sum."""
    total = sum(size for _, size in ready.memory)
    rows = [(name, bytes_text(size), _share(size, total)) for name, size in ready.memory]
    rows.append(("available", bytes_text(total), _share(total, total)))
    return table(("memory", "size", "share"), rows)


def decisions_text(ready: Ready, chosen: tuple[tuple[str, str, str], ...] = ()) -> str:
    """What was decided for the operator and why: by the engine, and here."""
    rows = (*ready.decisions, *chosen)
    return table(("decided", "value", "because"), rows) if rows else ""


def timeline_text(total_s: float, before: Sequence[Phase], engine: Iterable[Phase]) -> str:
    """The start-up's parts; the rest up to `total_s` is shown as unexplained."""
    phases = [*before, *engine]
    unexplained = total_s - sum(phase.seconds for phase in phases)
    phases.append(Phase(name="unexplained", seconds=unexplained))
    rows = [
        (phase.name, seconds_text(phase.seconds), _share(phase.seconds, total_s), phase.detail)
        for phase in phases
    ]
    rows.append(("process start to ready", seconds_text(total_s), "100.0 %", ""))
    return table(("start-up", "time", "share", ""), rows)


def ready_text(ready: Ready, address: Address, *, has_openai: bool) -> str:
    """The URLs, and a curl and a Python line that work as printed, in this interpreter."""
    variable = "${OCTAVO_API_KEY%%,*}" if address.has_keys else "$OCTAVO_API_KEY"
    key = variable if address.needs_key else ""
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    example = _example(ready, address.model)
    body = json.dumps(example.body)
    uses_openai = has_openai and example.expression is not None
    call = _openai_call(address, example) if uses_openai else _urllib_call(address, example)
    cache = f"KV cache of {ready.kv_tokens} tokens" if ready.num_blocks else "no KV cache"
    head = (
        f"ready: {address.model} on {ready.device} in {ready.dtype}, context {ready.max_model_len} "
        f"tokens, up to {ready.max_num_seqs} sequences, {cache}"
    )
    return "\n".join(
        [
            head,
            f"  URL     {address.url}/v1",
            f"  console {address.url}/console",
            f"  curl    curl -s {address.url}{example.path}{header} "
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}",
            f"  Python  {shlex.quote(sys.executable)} -c {shlex.quote(call)}",
        ]
    )


class _Example(NamedTuple):
    """A call that this model answers."""

    path: str
    body: dict[str, object]
    expression: str | None
    """Of the official client, where it has the endpoint; `create` takes the body."""
    shown: str
    """What is printed of the answer's JSON."""


def _example(ready: Ready, model: str) -> _Example:
    pooling = ready.pooling
    if pooling is None:
        body: dict[str, object] = {"model": model, "prompt": PROMPT, "max_tokens": 32}
        text = "client.completions.create({}).choices[0].text"
        return _Example("/v1/completions", body, text, '["choices"][0]["text"]')
    if "embed" in pooling.tasks:
        vector = "client.embeddings.create({}).data[0].embedding[:4]"
        body = {"model": model, "input": PROMPT}
        return _Example("/v1/embeddings", body, vector, '["data"][0]["embedding"][:4]')
    if "score" in pooling.tasks:
        body = {"model": model, "text_1": PROMPT, "text_2": "return a + b"}
        return _Example("/score", body, None, '["data"][0]["score"]')
    body = {"model": model, "input": PROMPT}
    return _Example("/classify", body, None, '["data"][0]["label"]')


def _openai_call(address: Address, example: _Example) -> str:
    imports = "import os; " if address.needs_key else ""
    secret = _secret(address) if address.needs_key else '"none"'
    arguments = ", ".join(f"{name}={json.dumps(value)}" for name, value in example.body.items())
    return (
        f"{imports}from openai import OpenAI; "
        f"client = OpenAI(base_url={json.dumps(f'{address.url}/v1')}, api_key={secret}); "
        f"print({(example.expression or '').format(arguments)})"
    )


def _secret(address: Address) -> str:
    return 'os.environ["OCTAVO_API_KEY"]' + '.split(",")[0]' * address.has_keys


def _urllib_call(address: Address, example: _Example) -> str:
    key = f', "Authorization": "Bearer " + {_secret(address)}' * address.needs_key
    return (
        "import json, os, urllib.request as u; "
        f"body = {json.dumps(example.body)}; "
        f'head = {{"Content-Type": "application/json"{key}}}; '
        f"call = u.Request({json.dumps(address.url + example.path)}, json.dumps(body).encode(), head); "
        f"print(json.load(u.urlopen(call)){example.shown})"
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
