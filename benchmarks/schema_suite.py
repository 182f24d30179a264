"""Grammars held against the JSON Schema Test Suite, which the source distribution of `jsonschema` contains.

    pip download --no-binary jsonschema --no-deps jsonschema && tar xzf jsonschema-*.tar.gz
    python benchmarks/schema_suite.py jsonschema-*/json/tests/draft2020-12 --json benchmarks/results/schema-suite.json

Each schema is refused, or accepted. Of an accepted one, every instance that the suite calls invalid must not be writable;
those that it calls valid should be, as `json.dumps` writes them (properties in another order than the schema's are not);
and random walks through its grammar, over the bundled model's tokens, must validate.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from structured import vocabulary

from octavo.core.assets import model_folder
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Grammar, GrammarBackend, GrammarError
from octavo.decoding.grammar.registry import DEFAULT, GRAMMARS
from octavo.text.tokenizer import Tokenizer
from octavo.tools.bench.environment import environment

VOCAB_SIZE = 4096
WALKS = 5
LONGEST = 300


def allowed(grammar: Grammar) -> Any:
    """Bool [V]: what may come next."""
    words = np.zeros(VOCAB_SIZE // 32, np.uint32)
    grammar.mask(words)
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)


def writes(grammar: Grammar, token_ids: list[int], ends: tuple[int, ...]) -> bool:
    """Whether the grammar allows exactly this output."""
    for token_id in token_ids:
        if grammar.is_finished() or not allowed(grammar)[token_id]:
            return False
        grammar.advance(token_id)
    return grammar.is_finished() or bool(allowed(grammar)[list(ends)].any())


def walk(grammar: Grammar, ends: tuple[int, ...], rng: random.Random) -> list[int] | None:
    """A random output; None when it is not complete after `LONGEST` tokens."""
    output: list[int] = []
    while len(output) < LONGEST:
        if grammar.is_finished():
            return output
        ids = np.flatnonzero(allowed(grammar)).tolist()
        may_end = [token_id for token_id in ids if token_id in ends]
        if may_end and (len(ids) == len(may_end) or rng.random() < 0.3):
            return output
        token_id = rng.choice([token_id for token_id in ids if token_id not in ends])
        grammar.advance(token_id)
        output.append(token_id)
    return None


class Suite:
    """Counts over all files."""

    def __init__(self, backend: GrammarBackend, tokenizer: Tokenizer) -> None:
        self.backend, self.tokenizer = backend, tokenizer
        self.ends = tokenizer.eos_token_ids
        self.found = {
            name: 0
            for name in (
                "schemas", "refused", "refused with a pointer", "accepted", "valid", "valid writable", "invalid",
                "invalid writable", "walks", "walks complete", "walks invalid",
            )
        }  # fmt: skip

    def schema(self, where: str, schema: Any, tests: list[dict[str, Any]]) -> None:
        """One schema with its instances."""
        found = self.found
        found["schemas"] += 1
        try:
            source = self.backend.compile(StructuredOutputs(json=json.dumps(schema)))
        except GrammarError as error:
            found["refused"] += 1
            found["refused with a pointer"] += "/" in str(error)
            return
        found["accepted"] += 1
        for test in tests:
            kind = "valid" if test["valid"] else "invalid"
            text = json.dumps(test["data"], ensure_ascii=False)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            found[kind] += 1
            if writes(self.backend.build(source), ids, self.ends):
                found[f"{kind} writable"] += 1
                if kind == "invalid":
                    print(f"writable, though {where}: {test['description']}: {text}")
        validator = jsonschema.Draft202012Validator(schema)
        for seed in range(WALKS):
            found["walks"] += 1
            output = walk(self.backend.build(source), self.ends, random.Random(seed))
            if output is None:
                continue
            found["walks complete"] += 1
            text = self.tokenizer.decode(output)
            if not validator.is_valid(json.loads(text)):
                found["walks invalid"] += 1
                print(f"invalid walk, {where}: {text[:200]}")


def main() -> None:
    """Run over every file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = model_folder("octavo-mini")
    backend = GRAMMARS.load(DEFAULT)(vocabulary(folder, VOCAB_SIZE))
    suite = Suite(backend, Tokenizer.load(folder))
    for file in sorted(options.folder.glob("*.json")):
        for case in json.loads(file.read_text()):
            suite.schema(f"{file.stem}: {case['description']}", case["schema"], case["tests"])
    for name, count in suite.found.items():
        print(f"{name}: {count}")
    if options.json is not None:
        record = {
            "environment": environment(),
            "suite": options.folder.parts[-4:],
            "found": suite.found,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
