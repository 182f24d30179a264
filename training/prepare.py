"""Collect the training text, fix the held-out files, train the tokenizer and write token files.

Sources: the Python 3.11 standard library (`.py`) and the reST sources of its documentation
(Debian package python3.11-doc), both under the PSF licence. It writes to `training/work/data/`,
and the two things a repository should keep: `training/heldout_files.txt` and a small held-out text.

    python training/prepare.py --docs /usr/share/doc/python3.11/html/_sources
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import chat_data
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
DATA = HERE / "work" / "data"
HELDOUT_LIST = HERE / "heldout_files.txt"
HELDOUT_SAMPLE = HERE.parent / "benchmarks" / "data" / "heldout.txt"
VOCAB_SIZE = 4096
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen2's splitting rule: single digits, whitespace runs whole, a newline ends a run.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Left out: tables, copies of the documentation, other people's packages and what a learner of
# Python has no use for.
SKIPPED_FOLDERS = {
    "site-packages", "__pycache__", "test", "tests", "encodings", "pydoc_data", "ensurepip",
    "lib2to3", "idlelib", "lib-dynload", "idle_test", "turtledemo",
}  # fmt: skip
SAMPLE_BYTES = 100_000

logger = logging.getLogger("prepare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source file. `name` is stable across machines: `docs/...` or `lib/...`."""

    name: str
    text: str
    kind: Literal["docs", "lib"]

    @property
    def is_heldout(self) -> bool:
        """One file in forty, by the hash of its name; large files stay in training."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return digest[0] % 40 == 0 and len(self.text) < 80_000


def read_documents(docs: Path, library: Path) -> Iterator[Document]:
    """All usable source files, in a fixed order."""
    for path in sorted(docs.rglob("*.rst.txt")):
        name = f"docs/{path.relative_to(docs)}".removesuffix(".txt")
        yield Document(name=name, text=path.read_text("utf-8"), kind="docs")
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        is_build_output = relative.name.startswith("_sysconfigdata")
        if SKIPPED_FOLDERS.intersection(relative.parts) or is_build_output:
            continue
        text = path.read_text("utf-8", errors="replace")
        if len(text) > 200:
            yield Document(name=f"lib/{relative}", text=text, kind="lib")


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; the three special tokens take ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True) for token in (END_OF_TEXT, IM_START, IM_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Special token -> id."""
    ids = {token: tokenizer.token_to_id(token) for token in (END_OF_TEXT, IM_START, IM_END)}
    return {token: number for token, number in ids.items() if number is not None}


def write_tokens(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """Write every text, each followed by the document separator, as uint16; return the count."""
    separator = special_ids(tokenizer)[END_OF_TEXT]
    pieces: list[np.ndarray] = []
    for encoding in tokenizer.encode_batch(texts):
        pieces.append(np.array([*encoding.ids, separator], dtype=np.uint16))
    tokens = np.concatenate(pieces)
    tokens.tofile(path)
    return len(tokens)


def write_heldout(heldout: list[Document]) -> None:
    """Keep the list, the full text for evaluation, and a sample small enough for the repository."""
    HELDOUT_LIST.write_text("".join(f"{d.name}\n" for d in heldout), "utf-8")
    with (DATA / "heldout.jsonl").open("w", encoding="utf-8") as file:
        for document in heldout:
            file.write(json.dumps({"name": document.name, "text": document.text}) + "\n")
    sample, size = [], 0
    by_kind = [[d for d in heldout if d.kind == kind] for kind in ("docs", "lib")]
    # Alternate the two kinds, smallest files first, so that the sample has many files of both.
    for pair in zip(*(sorted(group, key=lambda d: len(d.text)) for group in by_kind), strict=False):
        for document in pair:
            block = document.text.rstrip() + "\n\n\n"
            if size + len(block.encode()) <= SAMPLE_BYTES:
                sample.append(block)
                size += len(block.encode())
    HELDOUT_SAMPLE.parent.mkdir(parents=True, exist_ok=True)
    HELDOUT_SAMPLE.write_text("".join(sample), "utf-8")


def main() -> None:
    """Run every stage once; a second run writes the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of the .rst.txt sources")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    DATA.mkdir(parents=True, exist_ok=True)

    documents = list(read_documents(arguments.docs, arguments.library))
    heldout = [d for d in documents if d.is_heldout]
    train = [d for d in documents if not d.is_heldout]
    random.Random(0).shuffle(train)
    write_heldout(heldout)
    chats = chat_data.build_chats(
        docs={d.name: d.text for d in train if d.kind == "docs"},
        library={d.name: d.text for d in train if d.kind == "lib"},
    )
    texts = {"base": [d.text for d in train], "chat": chats}
    tokenizer = train_tokenizer(texts["base"] + chats[: len(chats) // 4])
    tokenizer.save(str(DATA / "tokenizer.json"))
    texts["heldout"] = [d.text for d in heldout]
    for name, parts in texts.items():
        count = write_tokens(tokenizer, parts, DATA / f"{name}.bin")
        size = sum(len(part.encode()) for part in parts)
        logger.info("%s: %d texts, %d bytes, %d tokens", name, len(parts), size, count)


if __name__ == "__main__":
    main()
