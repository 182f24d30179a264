"""`octavo why` from the step log on disk: who cost a request most, and when its first token would have come without them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from local_engine import LocalEngine, write_tiny
from local_engine import request as asked
from octavo.engine.whatif import WhatIf, what_if
from octavo.meter.evidence import evidence, stamps_of
from octavo.meter.why import explain, total_of
from octavo.tools import cli
from octavo.tools.why import guess_text

HOG, VICTIM = "cmpl-" + "a" * 32, "chatcmpl-" + "b" * 32


@pytest.fixture(scope="module", params=[False, True], ids=["one at a time", "one ahead"])
def log(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """One row; a long answer has it when a short question comes."""
    folder = tmp_path_factory.mktemp("whatif")
    write_tiny(folder / "tiny")
    engine = LocalEngine(
        folder / "tiny",
        step_log=str(folder / "steps"),
        max_num_seqs=1,
        async_scheduling=request.param,
    )
    for number in range(24):  # so that steps have a price
        engine.run([asked(f"w{number}", [number] * 20, max_tokens=4, arrived=time.monotonic())])
    engine.submit(asked(HOG, [5] * 40, max_tokens=200, ignore_eos=True, arrived=time.monotonic()))
    for _ in range(5):
        engine.step()
    engine.submit(asked(VICTIM, [7] * 30, max_tokens=3, arrived=time.monotonic()))
    engine.run()
    engine.engine.steps.close()
    return folder


def test_without_the_one_that_had_the_row_it_would_have_come_at_once(log: Path) -> None:
    [found] = evidence(log / "steps", VICTIM)
    why = explain(VICTIM, stamps_of(found), found.seen)
    assert total_of(why.parts) == pytest.approx(why.total_s)
    queued = sum(part.seconds for part in why.parts if part.reason == "no_row")
    assert queued > 0.8 * why.total_s, "it waited for the row"
    assert why.costliest[0].id == HOG and why.costliest[0].seconds > 0.2 * why.total_s
    guess = what_if(found, HOG)
    assert isinstance(guess, WhatIf) and guess.actual_s is not None
    assert guess.without_s < 0.2 * guess.simulated_s and guess.without_s < 0.2 * guess.actual_s
    alone = what_if(found, "w3")
    assert isinstance(alone, WhatIf) and alone.without_s > 0.2 * guess.simulated_s
    assert isinstance(what_if(found, "nobody"), str)
    [partial] = [found._replace(run=found.run._replace(is_whole=False))]
    assert "start" in str(what_if(partial, HOG))


def test_the_difference_counts_and_not_what_a_replay_is_off_by() -> None:
    def told(actual: float | None, simulated: float, without: float) -> str:
        return guess_text(WhatIf("x", actual, simulated, without)._asdict())

    assert "come after 0.300 s, not 4.100 s" in told(4.1, 4.0, 0.2)
    assert "come not sooner: it came after 0.048 s" in told(0.048, 0.05, 0.05), (
        "never later without"
    )
    assert "come not sooner: it came after 0.092 s" in told(0.092, 0.083, 0.0825)
    assert "come after 0.000 s, not 0.050 s" in told(0.05, 0.09, 0.01), "nor before it was asked"
    assert "cannot be told" in told(0.048, 14.7, 13.7) and "cannot be told" in told(4.0, 0.1, 0.01)
    assert "come after 0.200 s, not 0.400 s" in told(None, 0.4, 0.2)


def test_the_command_tells_it(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["why", VICTIM, "--step-log", str(log)]) == 0
    text = capsys.readouterr().out
    assert "queue: no_row" in text and HOG in text and "engine's part alone" in text, text
    assert f"ithout {HOG}" in text and "by replay" in text, text
    assert cli.main(["why", "b" * 32, "--step-log", str(log / "steps"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    timing = told["timing"]
    assert sum(part["seconds"] for part in timing["parts"]) == pytest.approx(timing["total_s"])
    assert told["what_if"]["without"] == HOG
    assert cli.main(["why", "c" * 32, "--step-log", str(log)]) == 2
    assert "step log" in capsys.readouterr().err
    assert cli.main(["why", "what?", "--step-log", str(log)]) == 2
    assert "32 hexadecimal digits" in capsys.readouterr().err
    assert cli.main(["why", "c" * 32, "--url", "http://127.0.0.1:9"]) == 2
    assert "--step-log" in capsys.readouterr().err
