"""What structured output costs, and that it is valid: compiling, masks, throughput, generations.

    python benchmarks/structured.py --work /tmp/structured --json benchmarks/results/structured.json

The schemas are written ones (`schemas.py`). Five parts, each on the
bundled model's vocabulary of 4,096, all but the last also on one of 151,936 tokens, which is trained from the Python files of
the interpreter (a minute, kept in `--work`) beside random weights, `large` with 8 layers of 512, `0.6b` (throughput only) in the
shape of Qwen3-0.6B and int4:

- compile: from the front end's call to its answer, over a warm process; every schema is new.
- mask: along random walks through the grammars (every allowed token is as likely), which visit more states than a model
  does; one thread. `forced` is the look for forced text.
- replay: masks along the documents that `valid` wrote (in `--work`), in each vocabulary's own tokens: states that a
  model's outputs pass through.
- throughput: `--batch` requests at once that all run to `max_tokens`, in alternating order, medians of each and of losses within a round. `free` has no
  grammar, `text` one that forces nothing, `list` is a JSON list of records, whose forced text is jumped over; with
  log-probabilities nothing is, which shows what masks cost where every token is chosen.
- valid: generations over all schemas, by jsonschema with format checks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sysconfig
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from schemas import schemas
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.core.assets import model_folder
from octavo.decoding.grammar.base import Vocabulary
from octavo.decoding.grammar.compiler import GrammarCompiler
from octavo.decoding.grammar.registry import DEFAULT, GRAMMARS
from octavo.text.tokenizer import Tokenizer
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

LARGE = 151_936
TRAINING_CHARS = 80_000_000
SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": LARGE,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "eos_token_id": 2,
}
QWEN = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
QWEN |= {"num_key_value_heads": 8, "head_dim": 128}
"""What Qwen3-0.6B has otherwise."""
WORD = {"type": "string", "pattern": "^[a-z]{1,12}$"}
RECORD = {
    "type": "object",
    "properties": {"name": WORD, "count": {"type": "integer"}, "kind": {"enum": ["red", "green"]}},
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}
LIST = StructuredOutputs(
    json=json.dumps({"type": "array", "items": RECORD, "minItems": 1000}),
    disable_any_whitespace=True,
)
TEXT = StructuredOutputs(regex=r"[A-Za-z0-9 ,.\n]*")
MODES: dict[str, tuple[StructuredOutputs | None, int | None, str]] = {
    "free": (None, None, "free"),
    "text": (TEXT, None, "free"),
    "list": (LIST, None, "free"),
    "free, logprobs": (None, 0, "free, logprobs"),
    "list, logprobs": (LIST, 0, "free, logprobs"),
}
"""Name -> constraint, log-probabilities, and the mode that it is held against."""


def large_model(work: Path, name: str) -> Path:
    """A folder with random weights, of 8 layers of 512 or in the shape of Qwen3-0.6B, and a byte-level tokenizer of 151,643
    tokens.
    """
    vocabulary = work / "large" / "tokenizer.json"
    folder = work / name
    for each in (vocabulary.parent, folder):
        each.mkdir(parents=True, exist_ok=True)
    if not vocabulary.exists():
        train().save(str(vocabulary))
    if not (folder / "tokenizer.json").exists():
        shutil.copy(vocabulary, folder)
    shape = SHAPE | (QWEN if name == "0.6b" else {})
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def train() -> Backend:
    """Byte-level BPE, split as by recent open models."""
    backend = Backend(models.BPE())
    split = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), level]
    )
    backend.decoder = decoders.ByteLevel()
    paths = sysconfig.get_paths()
    texts: list[str] = []
    for place in (paths["stdlib"], paths["purelib"]):
        for file in sorted(Path(place).rglob("*.py")):
            if len(texts) % 100 == 0 and sum(map(len, texts)) > TRAINING_CHARS:
                break
            texts.append(file.read_text(errors="ignore"))
    trainer = trainers.BpeTrainer(
        vocab_size=151_643,
        min_frequency=2,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    found = {f"p{q}": float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99)}
    return found | {"max": max(seconds) * 1e3, "count": len(seconds)}


def vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    tokenizer = Tokenizer.load(folder)
    return Vocabulary(
        tokenizer_json=tokenizer.to_json(),
        eos_token_ids=tokenizer.eos_token_ids,
        vocab_size=vocab_size,
    )


def compile_part(known: Vocabulary, count: int) -> dict[str, Any]:
    compiler = GrammarCompiler(lambda: known)
    seconds: list[float] = []

    async def run() -> float:
        begun = time.perf_counter()
        await compiler.compile(StructuredOutputs(regex="warm"))
        started = time.perf_counter() - begun
        for schema in schemas(count):
            wanted = StructuredOutputs(json=json.dumps(schema))
            begun = time.perf_counter()
            await compiler.compile(wanted)
            seconds.append(time.perf_counter() - begun)
        return started

    started = asyncio.run(run())
    compiler.close()
    return {"compile_ms": percentiles(seconds), "first_s": started}


def mask_part(known: Vocabulary, count: int) -> dict[str, Any]:
    begun = time.perf_counter()
    backend = GRAMMARS.load(DEFAULT)(known)
    found: dict[str, Any] = {"backend_s": time.perf_counter() - begun}
    words = np.zeros(-(-known.vocab_size // 32), np.uint32)
    times: dict[str, list[float]] = {"mask": [], "forced": [], "advance": []}
    rng = random.Random(0)
    forced_tokens = tokens = 0
    for schema in schemas(count):
        grammar = backend.build(backend.compile(StructuredOutputs(json=json.dumps(schema))))
        length = 0
        while not grammar.is_finished() and length < 150:
            begun = time.perf_counter()
            forced = grammar.forced()
            times["forced"].append(time.perf_counter() - begun)
            for token_id in forced:
                grammar.advance(token_id)
            length += len(forced)
            forced_tokens += len(forced)
            if forced:
                continue
            begun = time.perf_counter()
            grammar.mask(words)
            times["mask"].append(time.perf_counter() - begun)
            allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            token_id = int(rng.choice(allowed))
            begun = time.perf_counter()
            grammar.advance(token_id)
            times["advance"].append(time.perf_counter() - begun)
            length += 1
        tokens += length
    found |= {f"{name}_ms": percentiles(values) for name, values in times.items()}
    return found | {"forced_share": forced_tokens / tokens}


def replay_part(known: Vocabulary, folder: Path, count: int, documents: Path) -> dict[str, Any]:
    """Documents that end in another place than the grammar does, cut ones, are walked as far as they go."""
    backend = GRAMMARS.load(DEFAULT)(known)
    tokenizer = Tokenizer.load(folder)
    words = np.zeros(-(-known.vocab_size // 32), np.uint32)
    seconds: list[float] = []
    for schema, texts in zip(schemas(count), json.loads(documents.read_text()), strict=True):
        source = backend.compile(StructuredOutputs(json=json.dumps(schema)))
        for text in texts:
            grammar = backend.build(source)
            for token_id in tokenizer.encode(text, add_special_tokens=False):
                begun = time.perf_counter()
                grammar.mask(words)
                seconds.append(time.perf_counter() - begun)
                assert words[token_id // 32] >> (token_id % 32) & 1, "a valid document"
                grammar.advance(token_id)
    return {
        "mask_ms": percentiles(seconds),
        "documents": sum(map(len, json.loads(documents.read_text()))),
    }


def throughput_part(llm: LLM, batch: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    prompts = [f"# item {number}\n" for number in range(batch)]
    speeds: dict[str, list[float]] = {name: [] for name in MODES}
    for turn in range(-1, rounds):
        order = list(MODES) if turn % 2 else list(MODES)[::-1]
        for name in order:
            params = [
                SamplingParams(
                    max_tokens=max_tokens,
                    seed=seed,
                    ignore_eos=True,
                    logprobs=MODES[name][1],
                    structured_outputs=MODES[name][0],
                )
                for seed in range(batch)
            ]
            llm.reset_prefix_cache()
            begun = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            elapsed = time.perf_counter() - begun
            count = sum(len(output.outputs[0].token_ids) for output in outputs)
            assert count == batch * max_tokens, f"{name}: {count} tokens"
            if turn >= 0:
                speeds[name].append(count / elapsed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    losses = {
        name: 1
        - statistics.median(a / b for a, b in zip(values, speeds[MODES[name][2]], strict=True))
        for name, values in speeds.items()
    }
    return {"tokens_per_s": medians, "loss": losses, "all": speeds, "batch": batch}


def valid_part(llm: LLM, count: int, each: int, max_tokens: int, documents: Path) -> dict[str, Any]:
    known = schemas(count)
    prompts = ["import json\n\ndata = "] * len(known)
    params = [
        SamplingParams(
            n=each,
            seed=seed,
            max_tokens=max_tokens,
            structured_outputs=StructuredOutputs(json=json.dumps(schema)),
        )
        for seed, schema in enumerate(known)
    ]
    found = {"generations": 0, "complete": 0, "cut": 0, "invalid": 0}
    begun = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for schema, output in zip(known, outputs, strict=True):
        # Decimals, because 1045.13 is no multiple of 0.01 in floating point.
        exact = json.loads(json.dumps(schema), parse_float=Decimal)
        dialect = jsonschema.Draft202012Validator
        validator = dialect(exact, format_checker=dialect.FORMAT_CHECKER)
        for choice in output.outputs:
            found["generations"] += 1
            if choice.finish_reason != "stop":
                found["cut"] += 1
                continue
            found["complete"] += 1
            try:
                validator.validate(json.loads(choice.text, parse_float=Decimal))
            except (ValueError, jsonschema.ValidationError) as error:
                found["invalid"] += 1
                print(f"invalid: {choice.text[:200]!r}: {str(error)[:200]}")
    texts = [
        [choice.text for choice in output.outputs if choice.finish_reason == "stop"]
        for output in outputs
    ]
    documents.write_text(json.dumps(texts))
    return found | {"seconds": time.perf_counter() - begun}


def report(results: dict[str, Any]) -> str:
    """What the results say, one line each."""
    lines = []
    for name, parts in results.items():
        if name == "environment":
            continue
        times = {
            "compile": ("compile_ms",),
            "mask": ("mask_ms", "forced_ms"),
            "replay": ("mask_ms",),
        }
        for part, keys in times.items():
            for key in keys if part in parts else ():
                p50, p99 = parts[part][key]["p50"], parts[part][key]["p99"]
                what = part if part == "replay" else key.removesuffix("_ms")
                lines.append([name, what, f"p50 {p50:.3f} ms, p99 {p99:.3f} ms"])
        for mode, loss in parts.get("throughput", {"loss": {}})["loss"].items():
            speed = parts["throughput"]["tokens_per_s"][mode]
            lines.append([name, mode, f"{speed:.0f} tok/s, loss {loss:.1%}"])
        if "valid" in parts:
            lines.append([name, "valid", str(parts["valid"])])
    return table(["model", "what", "found"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for the large vocabulary"
    )
    parser.add_argument("--parts", default="compile,mask,throughput,valid,replay")
    parser.add_argument("--models", default="octavo-mini,large")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where results go; parts already there stay")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text())
    results["environment"] = environment()
    parts = options.parts.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    documents = options.work / "documents.json"
    for name in options.models.split(","):
        is_large = name in ("large", "0.6b")
        folder = large_model(options.work, name) if is_large else model_folder(name)
        known = vocabulary(folder, LARGE if is_large else 4096)
        rows = results.setdefault(name, {})
        if "compile" in parts:
            rows["compile"] = compile_part(known, options.schemas)
        if "mask" in parts:
            rows["mask"] = mask_part(known, options.schemas)
        if "throughput" in parts or ("valid" in parts and not is_large):
            load = {"load_format": "dummy"} if is_large else {}
            load |= {"quantization": "int4"} if name == "0.6b" else {}
            with LLM(str(folder), max_num_seqs=options.batch, max_model_len=1536, **load) as llm:
                if "throughput" in parts:
                    length = 48 if is_large else 256
                    rows["throughput"] = throughput_part(llm, options.batch, length, options.rounds)
                if "valid" in parts and not is_large:
                    rows["valid"] = valid_part(llm, options.schemas, 10, 1200, documents)
        if "replay" in parts:
            rows["replay"] = replay_part(known, folder, options.schemas, documents)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + report(results))


if __name__ == "__main__":
    main()
