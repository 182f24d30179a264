"""Whether a tokenizer is the model's: told at the start, instead of by refusing whoever asks, or by answers without text."""

from __future__ import annotations

from octavo.core.errors import ModelError
from octavo.core.log import get_logger
from octavo.text.tokenizer import Tokenizer

KNOWN_SHARE = 0.9
"""Of the model's ids, least that its tokenizer has a text for. Vocabularies are padded: of Phi-2's 51,200 ids 98 % have one, of
other families' more."""

logger = get_logger(__name__)


def check_fit(tokenizer: Tokenizer, vocab_size: int, *, is_dummy: bool) -> None:
    """Check that what texts become are ids of the model. With dummy weights (`is_dummy`) it is a warning at most, since any
    tokenizer serves their measurements.

    Raises:
        ModelError: ordinary text becomes ids that the model does not have.
    """
    size = tokenizer.vocab_size
    if size <= vocab_size:
        if size < KNOWN_SHARE * vocab_size and not is_dummy:
            logger.warning(
                "The tokenizer has a text for ids below %d, and the model %d ids: what it writes with the others is lost. "
                "Give the model's own: --tokenizer FOLDER.",
                size,
                vocab_size,
            )
        return
    ordinary = tokenizer.ordinary_vocab_size()
    if ordinary > vocab_size and not is_dummy:
        raise ModelError(
            f"the tokenizer has ids up to {ordinary - 1}; expected ids below {vocab_size}, the vocab_size of the model's config.json.",
            code="E-TOK-04",
            fix="Give the model's own tokenizer: --tokenizer FOLDER, or leave the flag out if it lies in the model's folder.",
        )
    what = "ids" if ordinary > vocab_size else "added tokens with ids"
    logger.warning(
        "The tokenizer has %s up to %d, and the model's vocabulary ends at %d: a prompt that holds one of the rest is refused.",
        what,
        size - 1,
        vocab_size - 1,
    )
