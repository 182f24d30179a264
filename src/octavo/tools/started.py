"""An `octavo serve` of one's own: a process as operators run it, for as long as it is needed."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from octavo.core.errors import EngineDeadError

FIELDS = (
    "tokenizer",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "load_format",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_itl_ms",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "performance_mode",
    "scheduling_policy",
    "threads",
)
"""Flags of `octavo serve` that verbs with a server of their own take for it."""

_READY = re.compile(r"^  URL\s+(http://[^/]+)/v1$")
_END_S = 30.0
_START_S = 900.0


@contextlib.contextmanager
def started(values: Mapping[str, object]) -> Iterator[str]:
    """The address of a server with this config (keys as in `--config`), once it is ready; ended with the context.

    Raises:
        EngineDeadError: it ended before it was ready; with the last line that it wrote.
    """
    quiet = {"host": "127.0.0.1", "port": 0, "disable_access_log": True, "canary_interval": 0.0}
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(quiet | dict(values)), encoding="utf-8")
        words = [sys.executable, "-m", "octavo.tools.cli", "serve", "--config", str(path)]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        timer = threading.Timer(_START_S, process.kill)  # one that hangs ends, and so its output
        timer.daemon = True
        timer.start()
        try:
            url = _address(process)
            timer.cancel()
            reader = threading.Thread(target=_drain, args=(process,), daemon=True)
            reader.start()
            try:
                yield url
            finally:
                _end(process)
                reader.join(_END_S)
        finally:
            timer.cancel()
            _end(process)
            if process.stdout is not None:
                process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    """Read what it prints until it says where it answers."""
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        found = _READY.match(line.rstrip())
        if found is not None:
            return found[1]
        last = line.strip() or last
    raise EngineDeadError(
        f"`octavo serve` ended before it was ready: {last[:500]}",
        code="E-TUNE-01",
        fix="Start it by hand with the same flags to see why.",
    )


def _drain(process: subprocess.Popen[str]) -> None:
    """Whoever nobody reads blocks when its pipe is full."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
