"""Flags, their snapshot (this file, run as a script, writes it) and config files."""

from pathlib import Path

import pytest

from octavo.core.config import EngineConfig, ServerConfig
from octavo.core.errors import ConfigError
from octavo.tools import unsupported
from octavo.tools.cli import VERBS, parser_of
from octavo.tools.flags import Configs, configs, flags_of

SNAPSHOT = Path(__file__).with_name("flags.txt")


def snapshot() -> str:
    lines = []
    for verb in VERBS:
        lines += [f"{verb} {option}" for option in sorted(parser_of(verb).options())]
    return "\n".join(lines) + "\n"


def parse(*words: str) -> Configs:
    return configs(parser_of("serve").parse(words))


def test_snapshot():
    assert snapshot() == SNAPSHOT.read_text(), f"run `python {__file__}` if this was meant"


def test_defaults():
    assert parse() == Configs(EngineConfig(), ServerConfig())


def test_every_field_has_a_flag_and_help():
    for config in (EngineConfig, ServerConfig):
        for flag in flags_of(config):
            assert flag.option in parser_of("serve").options()
            assert flag.meta.description


def test_values_of_every_kind():
    engine, server = parse(
        *("model-folder", "--dtype", "bfloat16", "--max-model-len", "4k"),
        *("--kv-cache-memory-bytes", "2G", "--gpu-memory-utilization", "0.5"),
        *("--no-enable-prefix-caching", "--served-model-name", "a", "b"),
        *("--port", "0", "--disable-uvicorn-access-log"),
    )
    assert engine == EngineConfig(
        model="model-folder",
        dtype="bfloat16",
        max_model_len=4000,
        kv_cache_memory_bytes=2 << 30,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
    )
    assert server == ServerConfig(served_model_name=("a", "b"), port=0, disable_access_log=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-num-seqs", "0"], "--max-num-seqs is '0'; expected an integer >= 1 and <= 4096."),
        (["--max-num-seqs", "x"], "--max-num-seqs is 'x'; expected an integer"),
        (["--max-num-seqs", "1.5"], "--max-num-seqs is '1.5'; expected an integer"),
        (["--max-model-len", "0"], "--max-model-len is '0'; expected an integer >= 1."),
        (["--gpu-memory-utilization", "1.5"], "expected a number > 0 and <= 1."),
        (["--gpu-memory-utilization", "nan"], "expected a number > 0 and <= 1."),
        (["--shutdown-timeout", "inf"], "--shutdown-timeout is 'inf'; expected a number >= 0"),
        (["--dtype", "fp8"], "--dtype is 'fp8'; expected one of auto, float32"),
        (["--port", "65536"], "--port is '65536'; expected an integer >= 0 and <= 65535."),
        (["a", "--model", "b"], "two models: 'a' and --model 'b'."),
    ],
)
def test_bad_values(words, message):
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert message in caught.value.message


@pytest.mark.parametrize("row", unsupported.ROWS, ids=lambda row: row.names[0])
def test_unsupported_flags_are_refused_by_name(row):
    for name in row.names:
        value = [] if row.takes == "switch" else ["2"]
        if row.takes == "switch" and "true" in row.neutral:
            assert parse(name) == parse()
            continue
        with pytest.raises(ConfigError) as caught:
            parse("model", name, *value)
        assert row.names[0] in caught.value.message
        assert "not supported" in caught.value.message
        assert caught.value.fix


def test_neutral_values_of_unsupported_flags_are_taken():
    words = ("m", "-tp", "1", "--quantization", "none", "--no-enable-lora", "--block-size", "16")
    assert parse(*words) == parse("m")


def config_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "octavo.yaml"
    path.write_text(text)
    return str(path)


def test_config_file_and_the_command_line_wins(tmp_path):
    text = "model: m\nmax-num-seqs: 7\nport: 9000\napi_key: [k]\ntensor-parallel-size: 1\n"
    path = config_file(tmp_path, text + "enable_prefix_caching: false\n")
    engine, server = parse("--config", path, "--port", "9001")
    assert engine == EngineConfig(model="m", max_num_seqs=7, enable_prefix_caching=False)
    assert server == ServerConfig(port=9001, api_key=("k",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-num-seq: 7", "unknown key 'max_num_seq'. Did you mean 'max_num_seqs'?"),
        ("max_num_seqs: '7x'", "--max-num-seqs is '7x'"),
        ("max_num_seqs: true", "--max-num-seqs is True; expected an integer"),
        ("enable_prefix_caching: 1", "--enable-prefix-caching is 1; expected true or false"),
        ("dtype: [float32]", "--dtype is ['float32']; expected one of"),
        ("max_num_seqs: null", "--max-num-seqs is None"),
        ("tensor_parallel_size: 2", "--tensor-parallel-size 2 is not supported yet"),
        ("enable_lora: true", "--enable-lora is not supported yet"),
        ("- a", "holds a list; expected keys"),
        ("a: [", "while parsing"),
    ],
)
def test_bad_config_files(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        parse("--config", config_file(tmp_path, text))
    assert message in caught.value.message


def test_missing_and_empty_config_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        parse("--config", str(tmp_path / "none.yaml"))
    assert parse("--config", config_file(tmp_path, "")) == parse()


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
