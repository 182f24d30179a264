"""`octavo batch` against a server in a thread: answers, resume after a cut, refusals before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, running
from octavo.tools import cli
from octavo.tools.batch import _on_one_line

COMPLETIONS = "/v1/completions"


def write(path: Path, *bodies: dict[str, Any], url: str = COMPLETIONS) -> Path:
    rows = [
        {"custom_id": f"r{i}", "method": "POST", "url": url, "body": body}
        for i, body in enumerate(bodies)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows), "an answer twice"
    return {row["custom_id"]: row for row in rows}


def test_every_line_is_answered_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(
        tmp_path / "in.jsonl", *[{"prompt": f"p{i}", "max_tokens": 2} for i in range(20)]
    )
    with running(FakeEngine()) as server:
        assert cli.main(["run-batch", str(source), "--url", server.url]) == 0
    found = answers(tmp_path / "in.out.jsonl")
    assert set(found) == {f"r{i}" for i in range(20)}
    one = found["r7"]
    assert one["response"]["status_code"] == 200 and one["error"] is None
    assert one["response"]["body"]["usage"]["completion_tokens"] == 2
    assert len(one["response"]["request_id"]) == 32
    assert "20 answered, 0 refused" in capsys.readouterr().err


def test_answers_of_any_server_keep_to_one_line() -> None:
    assert bytes(_on_one_line(b'{\n  "a": 1\n}')) == b'{"a":1}'
    assert bytes(_on_one_line(b"<html>\n")) == b'"<html>\\n"'


@pytest.mark.parametrize("cut", [0, 1, 7, None])
def test_a_half_written_output_is_gone_on_with(tmp_path: Path, cut: int | None) -> None:
    """Cut after a line, inside one, or right before its line break."""
    source = write(tmp_path / "in.jsonl", *[{"prompt": f"p{i}", "max_tokens": 2} for i in range(9)])
    target = tmp_path / "out.jsonl"
    words = ["batch", "-i", str(source), "-o", str(target), "--concurrency", "3"]
    engine = FakeEngine()
    with running(engine) as server:
        assert cli.main([*words, "--url", server.url]) == 0
        first = answers(target)
        lines = target.read_bytes().splitlines(keepends=True)
        partial = lines[5][:-1] if cut is None else lines[5][:cut]
        target.write_bytes(b"".join(lines[:5]) + partial)
        assert cli.main([*words, "--url", server.url]) == 0
        again = answers(target)
        assert set(again) == set(first)
        kept = [json.loads(line)["custom_id"] for line in lines[:5]]
        assert all(again[name] == first[name] for name in kept)
        assert len(engine.submitted) == 9 + 4
        assert cli.main([*words, "--url", server.url]) == 0
        assert len(engine.submitted) == 13, "nothing was left to do"


def test_a_refused_line_is_told_and_makes_the_exit_code(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "a", "n": 0})
    with running(FakeEngine()) as server:
        for _ in range(2):
            assert cli.main(["batch", str(source), "--url", server.url]) == 1
    bad = answers(tmp_path / "in.out.jsonl")["r1"]
    assert bad["error"]["code"] == "400"
    assert bad["response"]["body"]["error"]["param"] == "n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no input file"),
        (["nowhere.jsonl"], "no file"),
        (["-i", "{in}", "-o", "{in}"], "is the input file"),
        (["-i", "{bad}"], "bad.jsonl:1: url is '/x'"),
        (["-i", "{in}", "-o", "{other}"], "something else than answers"),
    ],
)
def test_refusals(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "in": write(tmp_path / "in.jsonl", {"prompt": "a"}),
        "bad": write(tmp_path / "bad.jsonl", {"prompt": "a"}, url="/x"),
        "other": tmp_path / "other.jsonl",
    }
    names["other"].write_text("hello\n")
    given = [word.format(**names) for word in words]
    assert cli.main(["batch", *given, "--url", "http://127.0.0.1:9"]) == 2
    assert said in capsys.readouterr().err
    assert names["other"].read_text() == "hello\n"
