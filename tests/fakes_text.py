"""Small real tokenizers, made in memory: byte-level BPE, sentencepiece style, plain words."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.text.tokenizer import Tokenizer, TokenizerFacts

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "hello world! hello there. stop. STOP here\n\n### end",
    "你好世界，今天天气很好。こんにちは 世界",
    "emoji 😀 👍🏽 👨‍👩‍👧 e\u0301 n\u0303 नमस्ते",
    "def f(x):\n    return x + 1\n",
] * 3
SPECIALS = ["<|im_start|>", "<|im_end|>"]


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE with two special tokens and three other added ones."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    # An added token with a space, one that looks like byte-level text, one of neither kind.
    backend.add_tokens([AddedToken(t, normalized=False) for t in ("<tool call>", "é", "标签")])
    return Tokenizer(backend, TokenizerFacts(specials={"eos_token": "<|im_end|>"}))


@cache
def metaspace(strips: bool = True) -> Tokenizer:
    """Sentencepiece style: metaspace, byte fallback and, as Llama 2 has it, one leading space taken off."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words = ["▁", "▁the", "▁hello", "▁world", "hello", "ing", "▁你好", "世界", "▁▁", "é", ".", "▁a"]
    chars = sorted({c for line in CORPUS for c in line if c.isascii() and c.isprintable()} - {" "})
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*names, *words, *chars]))}
    backend = Backend(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, TokenizerFacts(specials={"bos_token": "<s>", "eos_token": "</s>"}))


@cache
def prepending() -> Tokenizer:
    """The Metaspace decoder of T5 and of unigram models, without byte tokens."""
    vocab = {t: i for i, t in enumerate(["<unk>", "</s>", "▁", "▁▁", "▁hi", "hi", "▁世界", "a▁b"])}
    backend = Backend(models.WordLevel(vocab, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend)


@cache
def words() -> Tokenizer:
    """A word list without a decoder: tokens are joined by spaces."""
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "one", "two", "three"])}
    backend = Backend(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


@cache
def word_pieces() -> Tokenizer:
    """BERT style."""
    vocab = {
        t: i for i, t in enumerate(["[UNK]", "[SEP]", "un", "##like", "##ly", ".", "n't", "do"])
    }
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return Tokenizer(backend)
