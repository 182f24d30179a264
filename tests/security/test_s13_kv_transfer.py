"""S13, keys and values in transit: none leave the process, and what is aborted at any step gives every block back."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_engine import LocalEngine, request, write_tiny
from octavo.tools.cli import main


@pytest.mark.parametrize(
    "words",
    [
        ("--kv-transfer-config", '{"kv_connector": "x", "kv_role": "kv_both"}'),
        ("--kv-offloading-size", "1"),
        ("--cpu-offload-gb", "1"),
    ],
)
def test_there_is_no_transfer_to_attack(words: tuple[str, str], capsys) -> None:
    assert main(["serve", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_an_abort_at_any_step_gives_every_block_back(tmp_path: Path) -> None:
    engine = LocalEngine(write_tiny(tmp_path / "tiny"), max_num_batched_tokens=24)
    pool = engine.engine.scheduler.cache.pools[0]
    free = pool.num_free
    ids = list(range(1, 70))
    golden = engine.run([request("golden", ids, max_tokens=10, cache_scope="g")])["golden"]
    assert pool.num_free == free
    for at in range(18):
        neighbour, victim = f"n{at}", f"v{at}"
        engine.submit(
            request(neighbour, ids, max_tokens=10, cache_scope=f"n{at}"),
            request(victim, ids, max_tokens=10, cache_scope=f"v{at}"),
        )
        for _ in range(at):
            if engine.engine.scheduler.has_work or engine.link.inbox:
                engine.step()
        engine.cancel(victim)
        while engine.link.inbox or engine.engine.scheduler.has_work:
            engine.step()
        assert victim in engine.ends and pool.num_free == free
        assert engine.tokens[neighbour] == golden
