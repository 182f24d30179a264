"""`octavo bench sweep` against a fake server."""

import csv
import json

import pytest

from octavo.tools import cli

SMALL = ["--num-prompts", "20", "--input-len", "4", "--output-len", "6"]


def test_a_point_per_rate(fake, capsys, tmp_path):
    words = ["bench", "sweep", "--base-url", fake.url, "--request-rate", "400", "200", "200"]
    cli.main([*words, *SMALL, "--json", "--out", str(tmp_path), "--no-png"])
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == "request_rate"
    assert [point["load"] for point in found["points"]] == [200, 400]
    assert len(fake.bodies) == 2 * (20 + 2)
    prompts = {tuple(body["prompt"]) for body in fake.bodies}
    assert len(prompts) == len(fake.bodies)  # nothing that a cache could have from the point before
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["request_rate"] for row in rows] == ["200.0", "400.0"]
    assert not (tmp_path / "sweep.png").exists()


def test_an_invalid_point_is_named(fake, capsys):
    fake.missing_tokens = 2
    code = cli.main(["bench", "sweep", "--url", fake.url, "--max-concurrency", "2", *SMALL])
    assert code == 1
    out = capsys.readouterr().out
    assert "INVALID at 2 at once (short-outputs:" in out and "NO" in out


def test_a_key_is_sent_and_not_written_down(fake, capsys):
    fake.key = "sesame-key"
    words = ["bench", "sweep", "--url", fake.url, "--max-concurrency", "2", *SMALL, "--json"]
    cli.main([*words, "--api-key", "sesame-key"])
    out = capsys.readouterr().out
    assert json.loads(out)["points"][0]["completed"] == 20
    assert "sesame-key" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "0 of --request-rate and --max-concurrency"),
        (["--request-rate", "1", "--max-concurrency", "1"], "2 of --request-rate"),
        (["--request-rate", "0"], "--request-rate"),
        (["--request-rate", "-3"], "--request-rate"),
        (["--request-rate", "1", "--goodput", "speed:1"], "--goodput 'speed:1'"),
        (
            ["--request-rate", "1", "--base-url", "x", "--threads", "1"],
            "--threads says how to start",
        ),
        (["--request-rate", "1", "--trace", "x"], "--request-rate with --trace"),
        (["--max-concurrency", "1", "--trace", "nowhere"], "nowhere"),
        (["--max-concurrency", *map(str, range(1, 70))], "69 loads"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(capsys, words, said):
    assert cli.main(["bench", "sweep", *words]) == 2
    assert said in capsys.readouterr().err
