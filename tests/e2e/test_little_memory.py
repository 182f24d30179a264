"""A start under a limit of addresses that the memory plan does not know."""

from __future__ import annotations

import subprocess
import sys

LIMIT_KIB = 4 << 20
MORE_BYTES = 4_500_000_000


def test_a_limit_of_addresses_is_told_without_a_traceback() -> None:
    words = f"{sys.executable} -m octavo bench latency --input-len 8 --output-len 2 --threads 1"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v {LIMIT_KIB}; exec {words} --kv-cache-memory-bytes {MORE_BYTES}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("E-MEM-06: the system refused the engine memory while it started"), last
    assert "limited to 4.00 GiB (ulimit -v)" in last
    assert "--kv-cache-memory-bytes" in last
    assert "Traceback" not in done.stderr
