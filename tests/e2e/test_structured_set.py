"""A short form of `benchmarks/structured.py`: the bundled model over varied schemas, nothing invalid."""

from __future__ import annotations

import importlib.util
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema

from octavo import LLM, SamplingParams, StructuredOutputs

FILE = Path(__file__).parents[2] / "benchmarks" / "schemas.py"


def schemas(count: int) -> list[dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("benchmark_schemas", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[dict[str, Any]] = module.schemas(count)
    return found


def test_what_is_complete_is_valid() -> None:
    known = schemas(24)
    params = [
        SamplingParams(
            seed=seed, n=2, max_tokens=500,
            structured_outputs=StructuredOutputs(json=json.dumps(schema)),
        )
        for seed, schema in enumerate(known)
    ]  # fmt: skip
    with LLM(threads=1, max_num_seqs=16, kv_cache_memory_bytes=1 << 26) as llm:
        outputs = llm.generate(["data = "] * len(known), params, use_tqdm=False)
    complete = 0
    dialect = jsonschema.Draft202012Validator
    for schema, output in zip(known, outputs, strict=True):
        exact = json.loads(json.dumps(schema), parse_float=Decimal)
        validator = dialect(exact, format_checker=dialect.FORMAT_CHECKER)
        for choice in output.outputs:
            if choice.finish_reason == "stop":
                complete += 1
                validator.validate(json.loads(choice.text, parse_float=Decimal))
    assert complete >= 40, "most end by themselves"
