"""`octavo plan`: the engine's own memory plan without torch, times that obey the roofline, advice that fits."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from local_engine import LocalEngine, write_tiny
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.kvspec import KVSpec
from octavo.kernels import ceilings
from octavo.kernels.cpu import native
from octavo.models.facts import read_facts
from octavo.models.shards import shard
from octavo.tools import cli, gpu
from octavo.tools.plan import breakeven, speed
from octavo.tools.plan import target as target_of_plan
from octavo.tools.plan.changes import smallest_changes
from octavo.tools.plan.command import plan_for
from octavo.tools.plan.devices import DEVICES
from octavo.tools.plan.predict import Fleet, Mix, fitted, parse_mix, predict, room
from octavo.tools.plan.target import Given, Target, find, network_of, speed_of

SHAPE = "benchmarks/shapes/qwen3-0.6b"
ROOT = Path(__file__).resolve().parents[3]
MODEL = str(ROOT / SHAPE)
GIVEN = Given(read_gb_s=40, tflops=0.15)


def plan_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["plan", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantization": "int8"},
        {"quantization": "int4"},
        {"kv_cache_dtype": "int8", "max_num_batched_tokens": 64},
        {"dtype": "bfloat16", "kv_cache_memory_bytes": 3 << 20, "max_num_seqs": 4},
        {"max_model_len": 128, "enable_chunked_prefill": False},
    ],
    ids=str,
)
def test_memory_is_exactly_what_the_engine_plans(tmp_path: Path, options: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    folder = write_tiny(tmp_path / "m", torch_dtype="bfloat16", **sizes)
    options = {"kv_cache_memory_bytes": 1 << 20, "max_num_seqs": 8} | options
    engine = LocalEngine(folder, **options)
    ready = engine.ready
    available = sum(
        size for _, size in ready.memory
    )  # of that moment; it changes from call to call
    config = EngineConfig(model=str(folder), load_format="dummy", device="cpu", **options)
    plan = plan_for(config, find("cpu", GIVEN._replace(memory_bytes=available)), Fleet())
    assert tuple((part.name, part.bytes) for part in plan.memory) == ready.memory
    assert plan.kv_tokens == ready.kv_tokens
    assert plan.max_model_len == ready.max_model_len
    told = {name: value for name, value, _ in ready.decisions}
    assert all(told[name] == value for name, value, _ in plan.decisions if name != "device")
    pool = engine.engine.runner.pool
    assert pool.num_bytes == dict(ready.memory)["kv cache"]


def test_a_plan_needs_a_config_alone_and_no_torch(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    script = (
        "import sys; from octavo.tools import cli\n"
        f"words = ['plan', {str(folder / 'config.json')!r}, '--device', 'h100']\n"
        "assert cli.main(words) == 0\n"
        "assert cli.main([*words[:2], '--device', 'cpu', '--read-gb-s', '40', '--tflops', '1']) == 0\n"
        "assert not {'torch', 'transformers', 'aiohttp'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TTFT full" in done.stdout


def test_numbers_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_json(capsys, MODEL, "--device", "h100", "--device-price", "3.6")
    assert plan["kv_bytes_per_token"] == 2 * 8 * 128 * 2 * 28
    assert plan["weights_bytes"] == 2 * 596_049_920
    assert sum(part["bytes"] for part in plan["memory"]) == plan["available_bytes"]
    assert plan["topology"]["processes"] == 2
    names = [each["mix"] for each in plan["predictions"]]
    assert names == ["chat", "documents", "long context"]
    for each in plan["predictions"]:
        # All that a request costs is what its tokens cost; 3.6 an hour is a thousandth a second.
        cost = each["prompt_tokens"] * each["cost_per_million_prompt"]
        cost += each["output_tokens"] * each["cost_per_million_output"]
        assert cost / 1e6 == pytest.approx(0.001 / each["requests_per_s"], rel=1e-6)
        stay = each["ttft_full_s"] + each["output_tokens"] * each["itl_full_s"]
        assert each["concurrency"] / stay == pytest.approx(each["requests_per_s"], rel=1e-6)


def resolved(target: Target, **options: Any) -> tuple[Any, speed.Network, speed.Speed]:
    plan = target.resolve(EngineConfig(model=MODEL, device=target.kind, **options))
    network = network_of(plan)
    return plan, network, speed_of(target, plan, network)


def test_one_sequence_is_bound_by_reading_and_a_prompt_by_arithmetic() -> None:
    target = find("h100", Given())
    plan, network, found = resolved(target)
    read = 3350e9 * speed.GPU_SHARES.read
    head = 151936 * 1024 * 2
    assert found.layers_s(1) == pytest.approx((plan.storage.num_bytes - head) / read, rel=1e-3)
    assert found.head_s(1) == pytest.approx(head / read)
    flops = 989e12 * speed.GPU_SHARES.products
    rows = 100_000
    assert found.layers_s(rows) == pytest.approx(2 * rows * 440_401_920 / flops)
    assert network.pairs(0, 3) == 28 * (1 + 2 + 3)
    assert network.pairs(10, 2) == 28 * (11 + 12)
    assert found.keys_s(network.kv_bytes(1000), 1) == pytest.approx(1000 * 114_688 / read)


def test_formats_that_a_device_does_not_multiply_are_refused() -> None:
    find("l4", Given()).resolve(EngineConfig(model=MODEL, device="cuda", quantization="fp8_block"))
    with pytest.raises(ConfigError, match=r"capability 8.9 or later, and this one has 8.0"):
        resolved(find("a100", Given()), quantization="fp8_block")


def test_windows_bound_what_is_read_and_multiplied(tmp_path: Path) -> None:
    facts = read_facts(Path(MODEL))
    facts = replace(facts, windows=(4,) * facts.num_layers)
    network = speed.Network(facts, "bfloat16", "bfloat16", "", facts.kv_specs("bfloat16"))
    assert network.kv_bytes(1000) == network.kv_bytes(4) == 4 * 114_688
    for start, count in ((0, 3), (0, 9), (2, 5), (7, 3)):
        each = sum(min(4, at + 1) for at in range(start, start + count))
        assert network.pairs(start, count) == 28 * each, (start, count)


def test_more_of_anything_takes_longer() -> None:
    _, network, found = resolved(find("a100", Given()))
    steps = [speed.decode_s(found, network, n, 500) for n in (1, 2, 8, 64, 256)]
    assert steps == sorted(steps)
    prompts = [speed.prompt_s(found, network, n, 2048) for n in (1, 500, 2048, 2049, 9000)]
    assert prompts == sorted(prompts)
    assert speed.between(((1, 1.0), (4, 2.0), (8, 8.0)), 2) == pytest.approx(4 / 3)
    assert speed.between(((1, 1.0), (4, 2.0), (8, 8.0)), 16) == 16.0


def test_concurrency_is_what_the_blocks_hold() -> None:
    plan, network, found = resolved(find("l4", Given()), kv_cache_memory_bytes=1 << 30)
    blocks = plan.memory.groups[0].num_blocks - 1
    assert room(plan, Mix("x", 1000, 24)) == (blocks // 64, "KV cache")
    assert room(plan, Mix("x", 10, 6)) == (128, "--max-num-seqs")
    alone = predict(plan, found, network, Mix("x", 4000, 96), Fleet(1, 1))
    assert alone.concurrency == blocks // 256
    twice = predict(plan, found, network, Mix("x", 4000, 96), Fleet(2, 1))
    assert twice.requests_per_s == pytest.approx(2 * alone.requests_per_s)
    assert alone.ttft_full_s > alone.ttft_alone_s
    assert alone.itl_full_s > alone.itl_alone_s


def test_a_mix_is_cut_to_the_context_and_a_bad_one_refused() -> None:
    short = fitted(Mix("x", 4096, 512), 2048)
    assert short.longest == 2048
    assert short.output == 512 * 2048 // 4608
    assert parse_mix("1000/300") == Mix("1000/300", 1000, 300)
    for bad in ("1000", "0/3", "3/0", "a/b", "1/2/3", "-1/4", "1" * 300 + "/1", "٣/4"):
        with pytest.raises(ConfigError, match="expected PROMPT/OUTPUT"):
            parse_mix(bad)


def test_several_devices_share_a_model_and_cannot_be_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = read_facts(Path(MODEL))
    assert shard(facts, 1) is facts
    half = shard(facts, 2)
    norms = facts.num_layers * (2 * 1024 + 2 * 128) + 1024
    assert 2 * (half.num_parameters - norms) == facts.num_parameters - norms
    assert sum(s.bytes_per_token for s in shard(facts, 16).kv_specs("bfloat16")) == 114_688 / 8
    with pytest.raises(ConfigError, match="can be divided over 1, 2, 4, 8, 16"):
        shard(facts, 3)
    plan = plan_json(capsys, MODEL, "--device", "h100", "--tp", "2", "--replicas", "3")
    assert plan["topology"] | {"runs_in_this_build": True} != plan["topology"]
    assert plan["topology"]["devices"] == 6
    assert plan["topology"]["processes"] == 9
    assert any("this build cannot run --tp 2" in note for note in plan["notes"])
    assert cli.main(["plan", MODEL, "--device", "cpu", "--tp", "2"]) == 2
    assert "E-PLAN-02" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "l4"])
@pytest.mark.parametrize(
    ("gib", "options"),
    [
        (1.4, {}),
        (0.9, {}),
        (0.01, {}),
        (3.6, {"max_model_len": 32768}),
        (6.0, {"max_model_len": 40960, "max_num_batched_tokens": 8192}),
        (4.0, {"kv_cache_memory_bytes": 8 << 30}),
    ],
)
def test_changes_are_three_and_each_fits(
    device: str, gib: float, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    extra = 1 if device == "l4" else 0  # what the driver takes
    target = find(device, GIVEN._replace(memory_bytes=int((gib + extra) * (1 << 30))))
    config = EngineConfig(model=MODEL, device=target.kind, **options)
    plan = plan_for(config, target, Fleet())
    if plan.fits:
        pytest.skip("fits there")
    assert len(plan.changes) == 3, plan.changes
    assert plan.changes == smallest_changes(config, target)
    for change in plan.changes:
        words = {"model": MODEL, **options}
        flags = shlex.split(change.flags)
        size = target.available
        if change.flags.startswith("a machine with"):
            size = int(re.findall(r"\d+", change.flags)[0]) << 30
            flags = []
        elif change.flags.startswith("(without"):
            words.pop("kv_cache_memory_bytes")
            flags = []
        command = ["plan", "--json", MODEL, "--read-gb-s", "40", "--tflops", "1"]
        if "--device" not in flags:
            command += ["--device", device, "--memory-gib", str((size >> 20) / 1024 + extra)]
        for name, value in words.items():
            option = f"--{name.replace('_', '-')}"
            if name != "model" and option not in flags:
                command += [option, str(value)]
        again = plan_json(capsys, *command[2:], *flags)
        assert again["fits"], change


def test_not_fitting_is_told_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", MODEL, "--device", "l4", "--memory-gib", "1.5"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: weights 1.11 GiB" in out
    assert "with --device a10" in out


def test_break_even(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "device_price: 2.0\ncurrency: EUR\noffers:\n- {name: dear, input: 1.0, output: 4.0}\n"
        "- {name: free, input: 0, output: 0}\n- {name: cheap, input: 0.0001, output: 0.0001}\n"
    )
    words = [MODEL, "--device", "h100", "--mix", "1000/500", "--break-even", str(prices)]
    plan = plan_json(capsys, *words)
    dear, free, cheap = plan["break_even"]
    assert dear["offer_per_request"] == pytest.approx(0.003)
    assert dear["own_per_day"] == 48
    assert dear["requests_per_day"] == pytest.approx(16_000)
    assert dear["tokens_per_day"] == pytest.approx(16_000 * 1500)
    assert dear["capacity_per_day"] == pytest.approx(
        86_400 * plan["predictions"][0]["requests_per_s"]
    )
    assert (dear["is_cheaper_at_most"], cheap["is_cheaper_at_most"]) == (True, False)
    assert free["requests_per_day"] is None
    assert cli.main(["plan", *words, "--device-price", "4"]) == 0
    out = capsys.readouterr().out
    assert "money in EUR" in out
    assert "32,000" in out, "--device-price wins over the file"
    assert "buy: beyond what the devices can do" in out


@pytest.mark.parametrize(
    "text",
    [
        "offers: []",
        "offers: [{name: a, input: 1}]",
        "offers: [{name: a, input: -1, output: 1}]",
        "offers: [{name: a, input: 1, output: 1, per: day}]",
        "- 1",
        "offers: [",
        "",
    ],
)
def test_a_bad_price_list_is_refused(tmp_path: Path, text: str) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(text)
    with pytest.raises(ConfigError, match="--break-even"):
        breakeven.read_prices(str(prices))


def test_break_even_needs_a_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("offers: [{name: a, input: 1, output: 1}]")
    assert cli.main(["plan", MODEL, "--device", "h100", "--break-even", str(prices)]) == 2
    assert "--device-price" in capsys.readouterr().err


def test_devices_have_what_a_roofline_needs() -> None:
    for name, row in DEVICES.items():
        assert row.memory_mib > 4096, name
        assert 0 < row.tflops_float32 < row.tflops < 5000, name
        assert row.source.startswith("https://"), name
    assert {row for _, row in gpu._NAMES} <= set(DEVICES)
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        find("h10", Given())


def test_names_of_the_driver() -> None:
    for told, row in {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "Tesla K80": None,
    }.items():
        assert gpu.row_of(told) == row, told


def test_flags_of_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max-model-len: 8192\nmax-num-seqs: 4\nport: 9000\ndevice: cuda\n")
    plan = plan_json(capsys, MODEL, "--device", "l4", "--config", str(file))
    assert plan["max_model_len"] == 8192
    assert plan["predictions"][0]["concurrency"] == 4
    again = plan_json(
        capsys, MODEL, "--device", "l4", "--config", str(file), "--max-model-len", "4k"
    )
    assert again["max_model_len"] == 4000


def test_an_encoder_has_no_tokens_to_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "architectures": ["BertModel"],
        "vocab_size": 500,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = plan_json(capsys, str(tmp_path), "--device", "l4", "--device-price", "1")
    [first, *_] = plan["predictions"]
    assert first["itl_alone_s"] is None
    assert first["cost_per_million_output"] is None
    assert first["requests_per_s"] > 0
    assert cli.main(["plan", str(tmp_path), "--device", "l4"]) == 0


def test_the_probe_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.002)
    monkeypatch.setattr(ceilings, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "MANY_ROWS_BYTES", 1 << 18)
    for form in ("float32", "bfloat16", "int8", "int4"):
        layer = [ceilings.Product(512, 256, 4, form), ceilings.Product(256, 256, 4, form)]
        head = ceilings.Product(1024, 256, 1, form)
        kv = "int8" if form == "int8" else "float32"
        spec = KVSpec(num_kv_heads=2, head_dim=32, dtype=kv)
        timing = ceilings.measure(layer, head, spec, 4, 1)
        assert [rows for rows, _ in timing.products] == list(ceilings.ROWS)
        assert all(seconds > 0 for _, seconds in (*timing.products, *timing.head))
        assert timing.products[-1][1] > timing.products[0][1]
        assert timing.kv_byte_s > 0 and timing.kv_shared_byte_s > 0
        assert timing.pair_s > 0
        assert timing.flop_per_s > 1e8
        assert 1e-6 < timing.host_s < 1.0


def test_products_are_timed_as_a_start_would_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bfloat16 where this CPU has units for that and float32 is not asked for."""
    rounds: list[bool] = []
    monkeypatch.setattr(target_of_plan.native, "round_products", rounds.append)
    monkeypatch.setattr(ceilings, "SECONDS", 0.002)
    folder = write_tiny(tmp_path / "m", torch_dtype="bfloat16")
    for dtype in ("auto", "float32"):
        config = EngineConfig(model=str(folder), device="cpu", threads=1, dtype=dtype)
        plan_for(config, find("cpu", Given(memory_bytes=1 << 30)), Fleet())
    assert rounds == [native.features().get("avx512_bf16", False), False]


@pytest.mark.parametrize("pace", [1, 3])
def test_this_cpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: int) -> None:
    """The loop's share of a step goes with the speed of Python."""
    monkeypatch.setattr(ceilings, "SECONDS", 0.002)
    monkeypatch.setattr(ceilings, "host_loops", lambda: [pace * speed.CPU_HOST_S])
    folder = write_tiny(tmp_path / "m")
    config = EngineConfig(model=str(folder), device="cpu", threads=1)
    target = find("cpu", Given(memory_bytes=1 << 30))
    plan = plan_for(config, target, Fleet())
    assert "measured here" in plan.ceilings[0][1]
    assert plan.predictions[0].itl_alone_s > pace * speed.CPU_OVERHEAD.step_s
    with pytest.raises(ConfigError, match="cannot be measured: in bfloat16") as caught:
        plan_for(replace(config, dtype="bfloat16"), target, Fleet())
    assert "--read-gb-s" in caught.value.fix
