"""`octavo bench serve` against a fake server on a free port."""

import json

import pytest

from octavo.core.errors import ConfigError
from octavo.tools import cli
from octavo.tools.bench import serve


def bench(fake, capsys, *words: str) -> tuple[int, dict]:
    command = ["bench", "serve", "--url", fake.url, "--json", "--num-prompts", "24"]
    code = cli.main([*command, "--input-len", "4", "--output-len", "6", *words])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {"err": captured.err}


def causes(report: dict) -> set[str]:
    # This machine may be busy with other tests; what it does to the client is not what is tested.
    noise = {"client-saturated", "drift"}
    return {reason["cause"] for reason in report["invalid_because"]} - noise


def test_a_good_run(fake, capsys):
    code, report = bench(fake, capsys, "--max-concurrency", "4", "--goodput", "e2el:60000")
    assert causes(report) == set()
    assert code == (0 if report["valid"] else 1)
    assert report["totals"]["completed"] == 24
    assert report["totals"]["output_tokens"] == 24 * 6
    assert report["totals"]["prompt_tokens"] == 24 * 4
    assert report["totals"]["peak_concurrency"] <= 4
    assert report["goodput"]["good"] == 24
    assert report["latencies_ms"]["itl"]["count"] == 24 * 5
    assert "fake-1" in report["environment"]["server"]
    assert report["arguments"]["seed"] is not None
    measured = fake.bodies[2:]
    assert len(measured) == 24
    assert measured[0]["ignore_eos"] is True
    assert measured[0]["stream_options"] == {"include_usage": True}
    assert len(measured[0]["prompt"]) == 4


def test_chat_with_words(fake, capsys):
    _, report = bench(fake, capsys, "--endpoint", "chat", "--extra-body", '{"top_k": 3}')
    assert causes(report) == set()
    assert len(fake.bodies[0]["messages"][0]["content"].split()) == 4
    assert fake.bodies[0]["top_k"] == 3


def test_constant_rate_is_kept(fake, capsys):
    words = ("--request-rate", "200", "--arrival", "constant", "--num-warmups", "0")
    _, report = bench(fake, capsys, *words)
    due = sorted(record["due"] for record in report["requests"])
    assert due == pytest.approx([i / 200 for i in range(24)], abs=1e-3)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"missing_tokens": 2}, "short-outputs"),
        ({"cached_tokens": 3}, "warm-cache"),
        ({"fail_every": 5}, "errors"),
        ({"cut_off": True}, "errors"),
    ],
)
def test_faults_of_the_server_invalidate(fake, capsys, fault, cause):
    for name, value in fault.items():
        setattr(fake, name, value)
    code, report = bench(fake, capsys)
    assert code == 1
    assert cause in causes(report)


def test_answers_in_one_piece_invalidate(fake, capsys):
    fake.in_one_piece = True
    code, report = bench(fake, capsys, "--output-len", "16")
    assert code == 1
    assert causes(report) == {"not-streamed"}


def test_declared_faults_are_fine(fake, capsys):
    fake.missing_tokens, fake.cached_tokens = 2, 3
    _, report = bench(fake, capsys, "--allow-short", "--warm-cache")
    assert causes(report) == set()


def test_trace(fake, capsys, tmp_path):
    path = tmp_path / "trace.jsonl"
    line = {"timestamp": 0.0, "prompt": "same", "output_len": 3}
    path.write_text("\n".join([json.dumps(line)] * 24))
    code, report = bench(fake, capsys, "--trace", str(path))
    assert code == 1
    assert causes(report) == {"warm-cache"}
    assert report["totals"]["output_tokens"] == 72


def test_table_and_file(fake, capsys, tmp_path):
    path = tmp_path / "run.json"
    cli.main(["bench", "serve", "--url", fake.url, "--num-prompts", "3", "--json", str(path)])
    out = capsys.readouterr().out
    assert out.startswith("INVALID (")
    assert "INVALID (too-few-requests)" in out
    assert "TTFT (ms)" in out
    assert json.loads(path.read_text())["valid"] is False


def test_api_key_is_sent_and_not_written_down(fake, capsys):
    fake.key = "sesame-key"
    code, report = bench(fake, capsys)
    assert code == 2
    assert report["err"].startswith("invalid_api_key: wrong key")
    _, report = bench(fake, capsys, "--api-key", "sesame-key")
    assert causes(report) == set()
    assert "sesame-key" not in json.dumps(report)


def test_no_server(capsys):
    assert cli.main(["bench", "serve", "--url", "http://127.0.0.1:9", "--num-prompts", "1"]) == 2
    assert "E-URL-01: no answer from http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["ttft", "ttft:x", "ttft:-1", "ttft:nan", "tfft:5", ":5"])
def test_bad_objectives(text):
    with pytest.raises(ConfigError, match="expected NAME:MILLISECONDS"):
        serve.parse_objectives([text])


@pytest.mark.parametrize(
    "words",
    [
        ["--request-rate", "0"],
        ["--request-rate", "-1"],
        ["--endpoint", "chat", "--prompts", "tokens"],
        ["--extra-body", "["],
        ["--input-len", "zipf"],
    ],
)
def test_bad_arguments(fake, capsys, words):
    code, report = bench(fake, capsys, *words)
    assert code == 2
    assert report["err"].startswith("E-CFG-01")
