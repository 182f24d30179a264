"""Tokenizers out of GGUF files: the token ids of the tokenizers they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import TokenType
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from gguf_files import add_tokenizer
from octavo.core.assets import bundled
from octavo.core.config import BUNDLED_MODEL
from octavo.core.errors import ModelError
from octavo.text.gguf import _SAME, SPLITTINGS
from octavo.text.tokenizer import Tokenizer

TEXTS = (
    "Hello world, it's a test: I'LL we'd 12345 3.14159 1st",
    "  leading and   many    spaces \t\ttabs\n\n\nlines \r\n end  ",
    "Übergrößenträger çà ñandú naïve café Ω≈ç√∫",
    "Привет, мир! Як справи? Здравствуй",
    "你好，世界。今天天气很好！日本語のテキスト、カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم ١٢٣ שלום עולם",
    "नमस्ते दुनिया १२३ ไทยภาษา",
    "👩‍👩‍👧‍👦 🇩🇪 emoji ✨ and math ∑x²",
    "def f(x):\n    return {'a': x['b'] ** 2}  # ok\n",
    "<|im_start|>user\nHi<|im_end|>\nHi <|endoftext|> end",
    "a", " ", "\n", "",
    "camelCaseHTTPServer snake_case __init__ $100.50 50% a+b=c <html>&amp;",
)  # fmt: skip


def bundled_file(path: Path, pre: str = "qwen2", **more: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), "qwen3")
    add_tokenizer(writer, bundled()[BUNDLED_MODEL], pre)
    return finished(writer, path, **more)


def finished(writer: gguf.GGUFWriter, path: Path, **more: Any) -> Path:
    for key, value in more.items():
        add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
        add.get(type(value), writer.add_uint32)(key.replace("__", "."), value)
    writer.add_tensor("a", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_bundled_tokenizer_comes_back(tmp_path: Path) -> None:
    expected = Tokenizer.load(bundled()[BUNDLED_MODEL])
    found = Tokenizer.load(bundled_file(tmp_path / "t.gguf"))
    for text in TEXTS:
        ids = expected.encode(text)
        assert found.encode(text) == ids, text
        assert found.decode(ids) == expected.decode(ids)
        assert found.decode(ids, skip_special_tokens=False) == text
    assert found.vocab_size == expected.vocab_size
    assert found.chat_templates == expected.chat_templates
    assert set(found.eos_token_ids) == set(expected.eos_token_ids)
    assert found.eos_token_ids[0] == expected.token_id("<|im_end|>")
    assert [i for i in range(20) if found.is_special(i)] == [0, 1, 2]


def test_beginnings_ends_and_defaults(tmp_path: Path) -> None:
    more = {
        "general__sampling__temp": 0.7,
        "general__sampling__top_k": 20,
        "general__sampling__penalty_repeat": 1.05,
        "tokenizer__ggml__bos_token_id": 0,
    }
    tokenizer = Tokenizer.load(bundled_file(tmp_path / "t.gguf", **more))
    assert tokenizer.default_sampling == {
        "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05,
    }  # fmt: skip
    assert tokenizer.bos_token == "<|endoftext|>"
    plain = tokenizer.encode("a")
    assert plain[0] != 0
    writer = gguf.GGUFWriter(str(tmp_path / "u.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    named = Tokenizer.load(finished(writer, tmp_path / "u.gguf"))
    assert named.encode("ab") == [0, 3], "files of this kind that do not say begin with it"
    assert named.encode("ab", add_special_tokens=False) == [3]


def oracle(pre: str) -> Any:
    """What each name stands for, as a tokenizer.json of its first model says it."""
    split = pre_tokenizers.Split
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    one = pre_tokenizers.Sequence([split(Regex(words % r"\p{N}"), "isolated"), byte_level])
    three = pre_tokenizers.Sequence([split(Regex(words % r"\p{N}{1,3}"), "isolated"), byte_level])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    return {
        "llama-bpe": three, "qwen2": one, "deepseek-r1-qwen": one, "gpt-2": gpt2, "smollm": digits,
    }.get(pre)  # fmt: skip


@pytest.mark.parametrize("pre", sorted(SPLITTINGS))
def test_every_way_to_split(tmp_path: Path, pre: str) -> None:
    """Against the same vocabulary behind the pre-tokenizer that such models have; text comes back in any case."""
    tokenizer = Tokenizer.load(bundled_file(tmp_path / "t.gguf", pre))
    backend = Backend.from_file(str(bundled()[BUNDLED_MODEL] / "tokenizer.json"))
    expected = oracle(pre)
    if expected is not None:
        spec = json.loads(backend.to_str())
        spec["model"]["ignore_merges"] = SPLITTINGS[pre].ignores_merges
        backend = Backend.from_str(json.dumps(spec))
        backend.pre_tokenizer = expected
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        if expected is not None:
            assert ids == backend.encode(text, add_special_tokens=False).ids, text
    composed = tokenizer.decode(tokenizer.encode("e\u0301"))
    assert composed == ("é" if SPLITTINGS[pre].composes else "e\u0301")


def test_the_default_splits_as_its_rules_say(tmp_path: Path) -> None:
    found = SPLITTINGS["default"]
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in found.patterns]
    pieces = pre_tokenizers.Sequence(splits).pre_tokenize_str("it's 12345, ok!! a+b")
    assert [piece for piece, _ in pieces] == [
        "it", "'", "s", " ", "123", "45", ",", " ok", "!!", " a", "+", "b",
    ]  # fmt: skip
    assert set(_SAME.values()) <= set(SPLITTINGS)


def sentencepiece_like(texts: list[str]) -> Backend:
    """Trained as `sentencepiece` would with byte fallback, and laid out as conversions of it are."""
    backend = Backend(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    return Backend.from_str(json.dumps(spec))


def sentencepiece_file(path: Path, backend: Backend, **more: Any) -> Path:
    spec = json.loads(backend.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    made = {"".join(merge): rank for rank, merge in reversed(list(enumerate(spec["merges"])))}
    types = []
    for number, token in enumerate(tokens):
        is_byte = token.startswith("<0x")
        types.append(
            TokenType.UNKNOWN if number == 0 else TokenType.CONTROL if number < 3
            else TokenType.BYTE if is_byte else TokenType.NORMAL
        )  # fmt: skip
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(made.get(token, 1e9)) for token in tokens])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return finished(writer, path, **more)


@pytest.fixture(scope="module")
def pieces() -> Backend:
    page = (Path(__file__).parents[3] / "README.md").read_text()
    return sentencepiece_like([*page.splitlines(), *TEXTS * 2])


def test_sentencepiece_tokens(tmp_path: Path, pieces: Backend) -> None:
    tokenizer = Tokenizer.load(sentencepiece_file(tmp_path / "t.gguf", pieces))
    for text in TEXTS:
        expected = pieces.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == [1, *expected], text
        assert tokenizer.decode(expected) == pieces.decode(expected)
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.decode(tokenizer.encode("\U0001f9ff")) == "\U0001f9ff", "by its bytes"
    assert tokenizer.encode("<s>a</s>")[1] == 1


def test_transformers_reads_the_same_ids(tmp_path: Path, pieces: Backend) -> None:
    from transformers import AutoTokenizer

    path = sentencepiece_file(tmp_path / "t.gguf", pieces, llama__block_count=1)
    other = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=path.name)
    tokenizer = Tokenizer.load(path)
    for text in TEXTS:
        if text.startswith(" "):
            continue  # there it gets no second space in front; in sentencepiece and here it does
        mine = tokenizer.encode(text, add_special_tokens=False)
        assert mine == other.encode(text, add_special_tokens=False), text


def test_no_space_is_put_in_front_where_the_file_says_so(tmp_path: Path, pieces: Backend) -> None:
    more = {"tokenizer__ggml__add_space_prefix": False}
    tokenizer = Tokenizer.load(sentencepiece_file(tmp_path / "t.gguf", pieces, **more))
    ids = tokenizer.encode("Hello world", add_special_tokens=False)
    assert not tokenizer.token_bytes(ids[0]).startswith(b" ")
    assert tokenizer.decode(tokenizer.encode(" Hello")) == " Hello"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer__ggml__model": "bert"}, r"model is 'bert'; gpt2, llama are read"),
        ({"tokenizer__ggml__pre": "command-r"}, r"pre is 'command-r'; deepseek.*default|default"),
        ({"tokenizer__ggml__eos_token_id": 99999}, r"99999; expected an id of 4096 tokens"),
        ({"tokenizer__ggml__add_bos_token": "yes"}, r"'yes'; expected true or false"),
        ({"tokenizer__ggml__merges": "x"}, r"merges is 'x'; expected an array of str"),
        ({"tokenizer__ggml__token_type": 3}, r"token_type is 3; expected an array of int"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = gguf.GGUFWriter.add_key_value

    def add(self: Any, key: str, *args: Any, **named: Any) -> None:
        self.kv_data[0].pop(key, None)
        original(self, key, *args, **named)

    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", add)
    with pytest.raises(ModelError, match=message) as caught:
        Tokenizer.load(bundled_file(tmp_path / "t.gguf", **change))
    assert caught.value.code == "E-TOK-01"
    assert "--tokenizer" in caught.value.fix


def test_tokens_that_are_twice_there_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "a"])
    writer.add_token_merges(["a b"])
    with pytest.raises(ModelError, match="two of its tokens are the same"):
        Tokenizer.load(finished(writer, tmp_path / "t.gguf"))
    writer = gguf.GGUFWriter(str(tmp_path / "u.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a c"])
    with pytest.raises(ModelError, match="cannot be built"):
        Tokenizer.load(finished(writer, tmp_path / "u.gguf"))
