"""What `octavo serve` prints when it is ready: the memory sum, the decisions, the timeline, how to call it. Pure.

Every list of parts sums to the whole it explains; what is left over is shown as such.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from octavo.engine.ipc import Phase, Ready
from octavo.tools.tables import bytes_text, seconds_text, table


class Address(NamedTuple):
    """How callers reach the server."""

    host: str
    port: int
    model: str
    needs_key: bool

    @property
    def url(self) -> str:
        """A URL that works from this machine, also when listening on every address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self.host, self.host)
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"http://{host}:{self.port}"


def process_age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    text = Path("/proc/self/stat").read_text(encoding="ascii")
    # Field 22, in clock ticks after boot; the second field may hold spaces, so count from its closing parenthesis.
    ticks = int(text.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def memory_text(ready: Ready) -> str:
    """The memory plan as a sum."""
    total = sum(size for _, size in ready.memory)
    rows = [(name, bytes_text(size), _share(size, total)) for name, size in ready.memory]
    rows.append(("available", bytes_text(total), _share(total, total)))
    return table(("memory", "size", "share"), rows)


def decisions_text(ready: Ready) -> str:
    """What was decided for the operator and why."""
    return table(("decided", "value", "because"), ready.decisions) if ready.decisions else ""


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


def ready_text(ready: Ready, address: Address) -> str:
    """The URL, and a curl and a Python line that work as printed."""
    key = "$OCTAVO_API_KEY" if address.needs_key else ""
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    body = json.dumps({"model": address.model, "prompt": "def add(a, b):", "max_tokens": 32})
    shell_body = body.replace("'", "'\\''")
    secret = 'os.environ["OCTAVO_API_KEY"]' if key else '"none"'
    imports = "import os; from openai import OpenAI" if key else "from openai import OpenAI"
    call = (
        f"{imports}; c = OpenAI(base_url={json.dumps(address.url + '/v1')}, api_key={secret}); "
        f"print(c.completions.create(model={json.dumps(address.model)}, "
        'prompt="def add(a, b):", max_tokens=32).choices[0].text)'
    )
    shell_call = call.replace("'", "'\\''")
    head = (
        f"ready: {address.model} on {ready.device} in {ready.dtype}, context {ready.max_model_len} "
        f"tokens, up to {ready.max_num_seqs} sequences, KV cache of {ready.kv_tokens} tokens"
    )
    return "\n".join(
        [
            head,
            f"  URL     {address.url}/v1",
            f"  curl    curl -s {address.url}/v1/completions{header} "
            f"-H 'Content-Type: application/json' -d '{shell_body}'",
            f"  Python  python -c '{shell_call}'",
        ]
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
