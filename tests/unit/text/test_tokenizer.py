"""Loading a model folder, and text to ids."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from tokenizers import processors

import fakes_text
import octavo
from octavo.core.errors import ModelError, RequestError
from octavo.text.tokenizer import Tokenizer

MINI = Path(octavo.__file__).parent / "assets" / "octavo-mini"


def write(folder: Path, **contents):
    for name, value in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(fakes_text.byte_level()._backend.to_str())
    write(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "chat_template": "T"},
        special_tokens_map={"bos_token": "<|im_start|>", "eos_token": "x"},
        generation_config={"eos_token_id": [0, 7], "temperature": 0.6, "top_k": 20, "min_p": None},
    )
    return tmp_path


def test_load_reads_every_file(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_ids == (0, 7, 1)
    assert tokenizer.default_sampling == {"temperature": 0.6, "top_k": 20}
    assert tokenizer.chat_templates == {"default": "T"}
    assert tokenizer.is_special(0) and not tokenizer.is_special(5)
    assert tokenizer.vocab_size == max(tokenizer._backend.get_vocab().values()) + 1
    ids = tokenizer.encode("hello 世界 <|im_end|>")
    assert ids[-1] == 1 and tokenizer.decode(ids) == "hello 世界 "


@pytest.mark.parametrize(
    ("break_it", "names"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe\xff"), "tokenizer.json"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json"),
        (lambda f: write(f, generation_config=[]), "generation_config.json"),
        (lambda f: write(f, generation_config={"top_p": "x"}), "top_p"),
        (lambda f: write(f, generation_config={"eos_token_id": "x"}), "eos_token_id"),
        (lambda f: write(f, tokenizer_config={"chat_template": 3}), "chat_template"),
        (
            lambda f: write(f, tokenizer_config={"added_tokens_decoder": [1]}),
            "added_tokens_decoder",
        ),
        (
            lambda f: write(
                f, tokenizer_config={"added_tokens_decoder": {"9999": {"content": "<new>"}}}
            ),
            "'<new>' as id 9999",
        ),
    ],
)
def test_a_broken_folder_is_a_model_error_that_names_the_file(folder, break_it, names):
    break_it(folder)
    with pytest.raises(ModelError, match=names) as caught:
        Tokenizer.load(folder)
    assert caught.value.fix


def test_a_sentencepiece_folder_is_told_how_to_convert(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in caught.value.fix


def test_eos_falls_back_to_config_json(folder):
    (folder / "generation_config.json").unlink()
    write(folder, config={"eos_token_id": 5})
    assert Tokenizer.load(folder).eos_token_ids == (5, 1)


def test_chat_templates_of_their_own_files_win(folder):
    write(folder, chat_template={"chat_template": "from json"})
    assert Tokenizer.load(folder).chat_templates == {"default": "from json"}
    (folder / "chat_template.jinja").write_text("from jinja")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert Tokenizer.load(folder).chat_templates == {"default": "from jinja", "tool_use": "tools"}
    rows = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    write(folder, tokenizer_config={"chat_template": rows})
    assert Tokenizer.load(folder).chat_templates["rag"] == "b"


@pytest.mark.parametrize("has_processor", [False, True])
@pytest.mark.parametrize("wanted", [None, False, True])
def test_add_bos_token_is_honoured(folder, wanted, has_processor):
    if has_processor:
        backend = Tokenizer.load(folder)._backend
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
        )
        (folder / "tokenizer.json").write_text(backend.to_str())
    config = {"bos_token": "<|im_start|>"} | ({} if wanted is None else {"add_bos_token": wanted})
    write(folder, tokenizer_config=config)
    tokenizer = Tokenizer.load(folder)
    has_bos = has_processor if wanted is None else wanted
    plain = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello") == [0] * has_bos + plain
    assert tokenizer.encode("") == [0] * has_bos


def test_truncation_and_padding_of_the_file_are_switched_off(folder):
    backend = Tokenizer.load(folder)._backend
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    (folder / "tokenizer.json").write_text(backend.to_str())
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("hello world " * 9)) == "hello world " * 9


def test_tokens_declared_or_named_beside_tokenizer_json(folder):
    size = Tokenizer.load(folder).vocab_size
    declared = {
        str(size): {"content": "<think>"},
        str(size + 1): {"content": "<x>", "special": True},
    }
    extra = ["<tool call>", "absent"]
    write(
        folder,
        tokenizer_config={"added_tokens_decoder": declared, "additional_special_tokens": extra},
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<think><x>") == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "<think>"
    assert tokenizer.is_special(tokenizer.token_id("<tool call>"))
    assert tokenizer.token_id("absent") is None


def test_lone_surrogates_are_refused():
    with pytest.raises(RequestError, match="surrogate"):
        fakes_text.byte_level().encode("a\ud800")


def test_token_bytes_and_text():
    bpe, spm = fakes_text.byte_level(), fakes_text.metaspace()
    for text in ("hello world", "你好 😀 e\u0301", "\n\t"):
        ids = bpe.encode(text)
        assert b"".join(map(bpe.token_bytes, ids)) == text.encode()
    assert spm.token_bytes(spm.token_id("<0x0A>")) == b"\n"
    assert spm.token_bytes(spm.token_id("▁hello")) == b" hello"
    assert spm.token_text(spm.token_id("▁hello")) == " hello"
    assert spm.token_bytes(spm.token_id("</s>")) == b"</s>"
    assert spm.token_text(spm.token_id("<0xFF>")) == "\ufffd"
    assert bpe.token_bytes(10**6) == bpe.token_bytes(-1) == b""
    assert bpe.token_bytes(bpe.token_id("<tool call>")) == b"<tool call>"


def test_bad_words_with_and_without_space():
    tokenizer = fakes_text.byte_level()
    found = tokenizer.bad_word_ids([" the"])
    assert [tokenizer.decode(ids) for ids in found] == ["the", " the"] or len(found) == 1
    for ids in tokenizer.bad_word_ids(["hello", "dog"]):
        assert tokenizer.decode(ids).strip() in {"hello", "dog"}
    with pytest.raises(RequestError, match="bad_words"):
        tokenizer.bad_word_ids([" "])


def test_a_decoder_that_cannot_stream_is_refused():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.BPE())
    backend.decoder = decoders.BPEDecoder()
    with pytest.raises(ModelError, match="BPEDecoder"):
        Tokenizer(backend)


def test_threads_agree():
    tokenizer = fakes_text.byte_level()
    texts = [f"hello world {i} 你好" * 20 for i in range(40)]
    expected = [tokenizer.encode(t) for t in texts]
    wrong = []

    def work():
        for text, ids in zip(texts, expected, strict=True):
            if tokenizer.encode(text) != ids or tokenizer.decode(ids) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_long_text_does_not_stop_other_threads():
    """A server answers its probes while it tokenizes a prompt of a million characters."""
    tokenizer = fakes_text.byte_level()
    text = "hello world <|end|> 你好 " * 15_000
    expected = tokenizer._backend.encode(text).ids
    found = []
    thread = threading.Thread(target=lambda: found.append(tokenizer.encode(text)))
    begun = last = time.monotonic()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    longest = max(longest, time.monotonic() - last)
    assert found == [expected]
    assert longest < (time.monotonic() - begun) / 2, "the other thread stood still"
    assert (
        tokenizer.encode_within(text, max_tokens=9, add_special_tokens=False).token_ids
        == expected[:9]
    )


@pytest.mark.skipif(not (MINI / "tokenizer.json").is_file(), reason="octavo-mini is not built yet")
def test_the_bundled_model(tmp_path):
    tokenizer = Tokenizer.load(MINI)
    assert tokenizer.eos_token_ids and "default" in tokenizer.chat_templates
    text = "Hello, world! 你好 😀\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    # As transformers has it, from a copy without the weights.
    from transformers import PreTrainedTokenizerFast

    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(MINI / name, tmp_path / name)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert oracle.encode(text) == ids
    assert oracle.decode(ids) == text
    assert len(oracle) == tokenizer.vocab_size
